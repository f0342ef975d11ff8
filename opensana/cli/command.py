"""What every command has in common: a `run`, a `--debug`, and where its words go.

stdout carries results only (paths, tables, JSON); everything said along the way goes to stderr.
"""

import codecs
import io
import json
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

PACKAGE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, kw_only=True)
class Command:
    """One sub-command; its dataclass fields are its flags."""

    debug: bool = False
    """Show the Python traceback of an error."""

    def run(self) -> None:
        raise NotImplementedError

    def defaults(self) -> Self | None:
        """Values to parse the command line over once more; what was typed wins over them."""
        return None


def say(text: str) -> None:
    """A line for the person at the terminal; that nobody can read it any more ends no work."""
    if sys.stderr is None:  # print would take stdout
        return
    with suppress(OSError):
        print(f"opensana: {text}", file=sys.stderr, flush=True)


def say_warnings() -> None:
    """What this package warns of is said as a line like any other; the rest stays as it was."""
    others = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], filename: str, *rest: Any) -> None:
        if category is UserWarning and Path(filename).is_relative_to(PACKAGE):
            say(str(message))
        else:
            others(message, category, filename, *rest)

    warnings.showwarning = show


def survive_any_encoding() -> None:
    """What stdout's encoding lacks is escaped from now on, as Python does on stderr.

    A file name that is no text, which Python keeps as lone surrogates, comes out as its own bytes.
    """
    codecs.register_error("opensana", _escaped)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="opensana")


def _escaped(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    error.end = error.start + 1
    code = ord(error.object[error.start])
    if 0xDC80 <= code <= 0xDCFF:
        return bytes([code - 0xDC00]), error.end
    return codecs.backslashreplace_errors(error)


def emit(line: str) -> None:
    """A line of the result, flushed so that a reader at the end of a pipe sees it at once."""
    print(line, flush=True)


def emit_json(value: Any) -> None:
    emit(json.dumps(value, default=str))


def table(value: dict[str, Any], *, indent: int = 0) -> list[str]:
    """A nested dictionary as aligned lines of `name  value`."""
    margin = "  " * indent
    width = max((len(name) for name in value), default=0)
    lines: list[str] = []
    for name, item in value.items():
        if isinstance(item, dict):
            lines += [f"{margin}{name}", *table(item, indent=indent + 1)]
        else:
            lines.append(f"{margin}{name:<{width}}  {_cell(item)}".rstrip())
    return lines


def aligned(rows: Iterable[Sequence[Any]]) -> list[str]:
    """Rows of cells as lines in which columns stand below each other."""
    cells = [[_cell(item) for item in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]


def with_interval(figure: Mapping[str, Any]) -> str:
    """A figure of an evaluation and, if it is known, its interval."""
    if "low" not in figure:
        return _cell(figure["value"])
    return f"{_cell(figure['value'])} ({_cell(figure['low'])} to {_cell(figure['high'])})"


def _cell(item: Any) -> str:
    if isinstance(item, float):
        return f"{item:.4g}"
    if isinstance(item, int) and not isinstance(item, bool):
        return f"{item:,}"
    if isinstance(item, list | tuple):
        return ", ".join(_cell(part) for part in item)
    return "" if item is None else str(item)
