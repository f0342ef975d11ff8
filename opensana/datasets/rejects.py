"""Rejected samples: `rejects.jsonl`, and the share that a run accepts."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from opensana.datasets.record import Reject
from opensana.errors import ConfigError, DataError
from opensana.files.writing import write_atomic

MAX_BAD = 0.01
SHOWN = 3


def share_of(text: str) -> float:
    """Parse a share in 0..1 such as "1%" or "0.01"; ConfigError for anything else."""
    number = text.strip().removesuffix("%")
    try:
        share = float(number) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ConfigError(f"a share is a number in 0..1 or a percentage such as 1%, got {text!r}")
    return share


def check_bad(
    where: str, rejects: Sequence[Reject], good: int, *, max_bad: float = MAX_BAD
) -> None:
    """DataError with the first reasons if more than the share `max_bad` of the samples is bad."""
    if not rejects and good:
        return
    total = len(rejects) + good
    if not total:
        raise DataError(f"{where} holds no pictures")
    if len(rejects) > max_bad * total or not good:
        shown = "; ".join(f"{reject.path!r} {reject.reason}" for reject in rejects[:SHOWN])
        raise DataError(
            f"{where}: {len(rejects):,} of {total:,} samples cannot be used, more than "
            f"{100 * max_bad:g} %: {shown}{'; ...' if len(rejects) > SHOWN else ''}. "
            f"`opensana data inspect` lists them; remove them, or allow more with max_bad"
        )


def write_rejects(path: Path, rejects: Iterable[Reject]) -> None:
    """Write JSON lines {"path", "reason"}, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(asdict(reject)) + "\n" for reject in rejects)
    write_atomic(path, lambda temporary: temporary.write_text(lines, "utf-8"))


def read_rejects(path: Path) -> list[Reject]:
    """Read a file of `write_rejects`."""
    with path.open(encoding="utf-8") as file:
        return [Reject(**json.loads(line)) for line in file]
