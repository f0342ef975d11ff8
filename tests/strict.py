"""Which warnings are ours: those of this code, and those that a library gives its caller, us.

A library that calls another one in a way that is out of date is not ours to mend.
"""

import sys
from types import FrameType
from typing import Any, NoReturn

OURS = ("opensana", "tests", "benchmarks", "recipes", "docs")
MACHINERY = ("warnings", "contextlib", "functools", "torch")
"""What lies between a caller and what it calls: decorators, and modules of torch called as such."""


def showwarning(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    """In place of `warnings.showwarning`: raise what we cause; pytest need not list the rest."""
    if caused_by(sys._getframe(1)) in OURS:
        _raise(message, category)


def caused_by(frame: FrameType | None) -> str:
    """The top-level package that called the one which warns, from the frame of the warning on."""
    packages = [p for p in _packages(frame) if p not in MACHINERY]
    warner = packages[0] if packages else ""
    if warner in OURS:
        return warner
    return next((package for package in packages if package != warner), "")


def _packages(frame: FrameType | None) -> list[str]:
    names: list[str] = []
    while frame is not None:
        names.append(frame.f_globals.get("__name__", "").partition(".")[0])
        frame = frame.f_back
    return names


def _raise(message: Warning | str, category: type[Warning]) -> NoReturn:
    raise message if isinstance(message, Warning) else category(message)
