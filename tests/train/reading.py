"""What a run has written, as tests read it."""

import json
from pathlib import Path
from typing import Any


def lines(run: Path) -> list[dict[str, Any]]:
    """Each line of metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def bits(run: Path, step: int = 10) -> dict[str, bytes]:
    """The bytes of every weight file of a checkpoint."""
    folder = run / "checkpoints" / f"step-{step:08d}"
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
