"""A picture of 4096 x 4096 by `opensana generate`, time and peak memory, in a process of its own.

    python -m benchmarks.four_k emoji-256 --steps 20 [--output FILE.png]
    python -m benchmarks.four_k 0.6B --steps 1

`0.6B` is Sana 0.6B with the sana-1.1 autoencoder in exact shape, random float32 weights, written by
diffusers; two layers of the width of Gemma 2 2B stand for its text encoder. The last line is JSON.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.timing import machine
from opensana.device import format_bytes

PROMPT = "a red apple"


def model_folder(name: str, folder: Path) -> str:
    """The model itself, or the folder that a process of its own has written it into."""
    if name != "0.6B":
        return name
    # Linux counts the memory of the parent at the fork as the child's.
    writer = multiprocessing.get_context("spawn").Process(target=write_model, args=(folder,))
    writer.start()
    writer.join()
    return str(folder)


def write_model(folder: Path) -> None:
    from diffusers.pipelines.sana.pipeline_sana import SanaPipeline

    from benchmarks.end_to_end import parts

    theirs: Any = SanaPipeline(**parts(1024, None, 2))
    theirs.save_pretrained(folder)


def draw(command: list[str]) -> dict[str, Any]:
    """Seconds and peak resident bytes of the command, from start to exit."""
    start = time.monotonic()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit("opensana generate failed")
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"seconds": round(time.monotonic() - start, 1), "peak": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description="One picture of 4096 x 4096.")
    parser.add_argument("model", help="emoji-256, a folder, or 0.6B")
    parser.add_argument("--side", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--memory", default="3GiB", help="of the decoder, beside the weights")
    parser.add_argument("--kernels", action="store_true", help="decode with the C++ convolution")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        output = arguments.output or Path(name) / "picture.png"
        model = model_folder(arguments.model, Path(name) / "model")
        side = str(arguments.side)
        command = [sys.executable, "-m", "opensana.cli", "generate", PROMPT, "--model", model]
        command += ["--width", side, "--height", side, "--steps", str(arguments.steps)]
        command += ["--memory", arguments.memory, "--seed", "1", "-o", str(output)]
        command += ["--dtype", "float32", *(["--kernels"] if arguments.kernels else [])]
        figures = draw(command)
    print(f"{figures['seconds']} s, {format_bytes(figures['peak'])} resident at most")
    results = {"model": arguments.model, "side": arguments.side, "steps": arguments.steps}
    print(json.dumps({"machine": machine(), "results": results | figures}))


if __name__ == "__main__":
    main()
