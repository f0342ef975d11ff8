"""What a GPU makes of all this, in one run of at most nine minutes.

    python -m benchmarks.gpu [--only parity latency] [--device cuda] [--to gpu.json] [--tiny]

Parts run one after another, each with its own deadline; the JSON file is written whole after each.
They need what the package needs, and nothing else: no trained weights and no network. diffusers is
compared with where it is installed. `--tiny` runs all of it in tiny shapes on a CPU: only what is
said about right and wrong counts then. The last line is the same JSON; the exit code is 1 if a
part failed, ran out of time, or found a number that is wrong.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.gpu.measuring import FAILED
from benchmarks.gpu.parts import Outcome, Setting, run_part
from benchmarks.record import flat
from benchmarks.timing import machine
from opensana.device import resolve_device
from opensana.errors import OpensanaError
from opensana.files.writing import write_json

DEADLINES = {
    "environment": 25,
    "parity": 70,
    "latency": 110,
    "graphs": 15,
    "throughput": 50,
    "kernels": 25,
    "flux": 65,
    "eight_bits": 55,
    "memory": 35,
    "training": 60,
    "profile": 30,
}
"""Seconds; 540 in all. What is wrong is not fast: parity comes before all times."""
WRONG = "wrong"
"""The figure in which a part names what is not as it must be."""


def main() -> int:
    parser = argparse.ArgumentParser(description="All that a GPU can tell about opensana.")
    parser.add_argument("--only", nargs="+", choices=DEADLINES, default=list(DEADLINES))
    parser.add_argument("--device", default=None, help="auto, or cpu with --tiny")
    parser.add_argument("--patience", type=float, default=1.0, help="times every deadline")
    parser.add_argument("--to", type=Path, default=Path("gpu.json"), metavar="FILE")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, to see that it runs")
    options = parser.parse_args()
    try:
        device = resolve_device(options.device or ("cpu" if options.tiny else "auto"))
    except OpensanaError as error:
        raise SystemExit(f"error: {error}") from error
    if device.type == "cpu" and not options.tiny:
        raise SystemExit("error: there is no GPU here; try --tiny, which runs on a CPU")
    setting = Setting(str(device), options.tiny)
    result: dict[str, Any] = {"machine": machine(), "setting": asdict(setting), "parts": {}}
    for name in options.only:
        seconds = DEADLINES[name] * options.patience
        outcome = run_part(f"benchmarks.gpu.{name}", seconds, setting)
        result["parts"][name] = asdict(outcome)
        write_json(options.to, result)
        tell(name, outcome)
    print(json.dumps(result))
    return int(any(not right(part) for part in result["parts"].values()))


def right(part: dict[str, Any]) -> bool:
    """Whether a part ended well, with no number that is wrong and no fault instead of one."""
    faults = [value for value in flat(part["figures"]) if str(value[1]).startswith(FAILED)]
    return part["status"] == "done" and not part["figures"].get(WRONG) and not faults


def tell(name: str, outcome: Outcome) -> None:
    head = f"{name}: {outcome.status} after {outcome.seconds:.1f} of {outcome.deadline:.0f} s"
    print(f"\n== {head}")
    for key, value in outcome.figures.items():
        print(f"{key:<40} {value}")
    if outcome.error:
        print(outcome.error)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
