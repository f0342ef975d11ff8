"""The log: one JSON object a line on stderr, without prompts and without keys."""

import json
import logging
import sys
import time
import traceback
from typing import Any


def log(event: str, **fields: Any) -> None:
    """One line; None is left out."""
    line = {"time": round(time.time(), 3), "event": event} | fields
    text = json.dumps({name: value for name, value in line.items() if value is not None})
    sys.stderr.write(text + "\n")  # at once: another thread's line may come next
    sys.stderr.flush()


def log_failure(error: BaseException, *private: str) -> None:
    """What went wrong and where, which no client is told; `private` texts are cut out."""
    frames = traceback.extract_tb(error.__traceback__)
    where = [f"{frame.filename}:{frame.lineno}" for frame in frames[-3:]]
    message = str(error)
    for text in filter(None, private):
        message = message.replace(text, "...").replace(repr(text)[1:-1], "...")
    log("failure", type=type(error).__name__, message=message, where=where)


def log_libraries() -> None:
    """What uvicorn and others report becomes lines of this log."""
    logging.basicConfig(level=logging.WARNING, handlers=[_Lines()], force=True)


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info and record.exc_info[1]
        if error:
            log_failure(error)
        else:
            log("warning", source=record.name, message=record.getMessage())
