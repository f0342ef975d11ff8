"""Run the command line in a process of its own: exit code, output, peak memory.

python measured.py WORDS...        prints the peak in bytes as the last line of stderr
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
UNREADABLE = "unreadable.png"


@dataclass(frozen=True)
class Run:
    code: int
    out: str
    error: str
    peak: int


def run(*words: object, seconds: float = 60) -> Run:
    """`opensana WORDS`, warnings being errors."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(Path(__file__)), *map(str, words)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    error, _, peak = done.stderr.strip().rpartition("PEAK ")
    return Run(done.returncode, done.stdout, error, int(peak))


def peak_bytes() -> int:
    """Of this process alone: ru_maxrss would count what its parent held before the exec."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) << 10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> int:
    from opensana.cli import main as command

    opened = Path.open

    def refuse(self: Path, *arguments: Any, **options: Any) -> Any:
        if self.name == UNREADABLE:  # root can read everything
            raise PermissionError(13, "Permission denied")
        return opened(self, *arguments, **options)

    Path.open = refuse
    try:
        return command(sys.argv[1:])
    finally:
        print("PEAK", peak_bytes(), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
