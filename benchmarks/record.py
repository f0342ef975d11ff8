"""Run a benchmark and keep what it printed, with date and command, in benchmarks/results.

    python -m benchmarks.record decoding --sides 512 1024

The last line of its output, JSON, becomes one table of figures at the head of the file. A second
run on the same day replaces the first.
"""

import json
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        raise SystemExit("usage: python -m benchmarks.record BENCHMARK [its options]")
    name, *options = sys.argv[1:]
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *options], stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise SystemExit(f"benchmarks.{name} failed; nothing was recorded")
    target = RESULTS / f"{date.today().isoformat()}-{name.replace('_', '-')}.md"
    target.write_text(page(name, options, done.stdout), encoding="utf-8")
    print(done.stdout, end="")
    print(f"recorded in {target}")


def page(name: str, options: list[str], output: str) -> str:
    """The Markdown of one run."""
    *said, last = output.rstrip().splitlines()
    figures = json.loads(last)
    rows = "\n".join(f"| {key} | {value} |" for key, value in flat(figures))
    command = " ".join(["python -m", f"benchmarks.{name}", *options])
    lines = "\n".join(said)
    parts = [f"# {name}, {date.today().isoformat()}", f"```console\n$ {command}\n{lines}\n```"]
    return "\n\n".join([*parts, f"| | |\n|---|---|\n{rows}"]) + "\n"


def flat(value: Any, key: str = "") -> list[tuple[str, Any]]:
    """Nested figures as `a.b.c` and value."""
    if not isinstance(value, dict):
        return [(key, value)]
    return [pair for k, v in value.items() for pair in flat(v, f"{key}.{k}" if key else str(k))]


if __name__ == "__main__":
    main()
