"""Files of JSON lines that other tools wrote."""

import json
from pathlib import Path
from typing import Any

from opensana.errors import DataError

MOST_BYTES = 256 << 20


def read_text(path: str | Path, how_to_get: str) -> str:
    """A text file; DataError, with where to get it, if it is missing or cannot be read."""
    file = Path(path)
    try:
        if file.stat().st_size > MOST_BYTES:
            raise DataError(f"{file} has more than {MOST_BYTES:,} bytes")
        return file.read_text("utf-8")
    except FileNotFoundError:
        raise DataError(f"there is no {file}; {how_to_get}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read: {error}") from None


def read_lines(path: str | Path, how_to_get: str) -> list[dict[str, Any]]:
    """One JSON object a line; empty lines are skipped."""
    found = []
    for number, line in enumerate(read_text(path, how_to_get).splitlines(), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise DataError(f"{path}, line {number} is no JSON object: {line[:60]!r}")
        found.append(value)
    if not found:
        raise DataError(f"{path} is empty; {how_to_get}")
    return found
