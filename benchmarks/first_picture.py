"""Wall time and peak memory of `opensana generate "a red apple"`, each time a new process.

    python benchmarks/first_picture.py [--runs 5] [--steps 2]

One run beforehand prepares the text encoder and fills the file cache. The last line is JSON.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def draw(folder: Path, options: list[str]) -> tuple[float, int]:
    """Seconds and peak resident bytes of one command, from start to exit."""
    command = [sys.executable, "-m", "opensana.cli", "generate", "a red apple", *options, "-o"]
    start = time.monotonic()
    process = subprocess.Popen([*command, str(folder / "apple_{seed}.png")])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit("opensana generate failed")
    # Linux counts kibibytes, macOS bytes.
    return time.monotonic() - start, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time and memory of a picture.")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--steps", type=int, help="left out, what the model recommends")
    arguments = parser.parse_args()
    options = [] if arguments.steps is None else ["--steps", str(arguments.steps)]
    with tempfile.TemporaryDirectory() as name:
        draw(Path(name), options)
        runs = [draw(Path(name), options) for _ in range(arguments.runs)]
    seconds = [second for second, _ in runs]
    figures = {
        "seconds_median": round(statistics.median(seconds), 2),
        "seconds_all": [round(value, 2) for value in seconds],
        "peak_gib": round(max(peak for _, peak in runs) / 2**30, 2),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
