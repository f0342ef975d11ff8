"""The log: one JSON object a line on stderr, without prompts and without keys."""

import json
import sys
import time
import traceback
from typing import Any


def log(event: str, **fields: Any) -> None:
    """One line; None is left out."""
    line = {"time": round(time.time(), 3), "event": event} | fields
    print(
        json.dumps({name: value for name, value in line.items() if value is not None}),
        file=sys.stderr,
        flush=True,
    )


def log_failure(error: Exception) -> None:
    """What went wrong and where, which no client is told."""
    frames = traceback.extract_tb(error.__traceback__)
    where = [f"{frame.filename}:{frame.lineno}" for frame in frames[-3:]]
    log("failure", type=type(error).__name__, message=str(error), where=where)
