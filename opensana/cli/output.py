"""Where pictures go: a pattern with {seed} and {index} becomes one path a picture.

An existing file is kept and the new picture gets `-1`, `-2`, ... before its suffix, unless the
user asked to overwrite. Everything that can be wrong with the target is found before drawing.
"""

import os
import tempfile
from collections.abc import Iterable, Iterator
from copy import copy
from itertools import count
from pathlib import Path
from string import Formatter

from opensana.errors import RequestError, near
from opensana.request import DRAWN_SEEDS, Request, seeds_from

DEFAULT_NAME = "out_{seed}.png"
PLACEHOLDERS = ("seed", "index")


class PictureFiles:
    """Names the pictures of one run."""

    def __init__(self, pattern: str, *, overwrite: bool) -> None:
        self.folder, self.name = _split(pattern)
        self.overwrite = overwrite
        self.given: set[Path] = set()
        self.tried: dict[Path, int] = {}
        _check_name(self.name)
        _check_folder(self.folder)

    def check(self, requests: Iterable[Request]) -> None:
        """RequestError unless the system takes the name of every picture of these requests."""
        trial = copy(self)
        trial.given, trial.tried = set(), {}
        for index, seed in enumerate(_seeds(requests)):
            try:
                path = trial.path(seed=seed, index=index)
            except (ValueError, OverflowError) as error:
                raise _unusable(self.name, error) from None
            _check_path(path)

    def path(self, *, seed: int | None, index: int) -> Path:
        """The file of the next picture."""
        wanted = self.folder / self.name.format(seed=seed, index=index)
        number = self.tried.get(wanted, 0)
        while self._taken(path := _numbered(wanted, number)):
            number += 1
        self.tried[wanted] = number + 1
        self.given.add(path)
        return path

    def _taken(self, path: Path) -> bool:
        # Two pictures of one run never share a file, whatever the user said about older ones; and
        # a folder is not overwritten.
        return (
            path in self.given
            or os.path.isdir(path)
            or (os.path.exists(path) and not self.overwrite)
        )


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}-{number}{path.suffix}") if number else path


def _seeds(requests: Iterable[Request]) -> Iterator[int]:
    """One a picture; for those that will be drawn at random the longest there are."""
    random = count(DRAWN_SEEDS - 1, -1)
    for request in requests:
        drawn = (next(random) for _ in range(request.images))
        yield from drawn if request.seed is None else seeds_from(request.seed, request.images)


def _split(pattern: str) -> tuple[Path, str]:
    path = Path(pattern)
    if pattern.endswith(("/", "\\")) or os.path.isdir(path):
        return path, DEFAULT_NAME
    return path.parent, path.name


def _check_name(name: str) -> None:
    try:
        for _, field, _, _ in Formatter().parse(name):
            if field is not None and field not in PLACEHOLDERS:
                raise RequestError(
                    f"unknown placeholder {{{field}}} in the output name {name!r}"
                    f"{near(field, PLACEHOLDERS)}; there are {{seed}} and {{index}}"
                )
        name.format(seed=0, index=0)
    except ValueError as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(
            f"the output name {name!r} is no pattern ({error}); write out_{{seed}}.png, "
            "or {{ and }} for braces"
        ) from None
    if Path(name).suffix.lower() != ".png":
        raise RequestError(f"pictures are PNG files, got the output name {name!r}; end it in .png")


def _check_folder(folder: Path) -> None:
    if "{" in str(folder):
        raise RequestError(
            f"placeholders belong in the file name, got the output folder {str(folder)!r}"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A name as long as that under which pictures are written at first.
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".", suffix=".partial"):
            pass
    except (OSError, ValueError) as error:
        raise RequestError(
            f"cannot write to the output folder {str(folder)!r} ({_reason(error)}); choose another"
        ) from None


def check_file(path: Path) -> None:
    """RequestError unless a file can be written there; before the work whose result it takes."""
    _check_folder(path.parent)
    _check_path(path)
    if path.is_dir():
        raise RequestError(f"{str(path)!r} is a folder; name the file to write")


def _check_path(path: Path) -> None:
    """RequestError unless the system takes the path for that of a file."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise _unusable(path.name, error) from None


def _unusable(name: str, error: Exception) -> RequestError:
    return RequestError(
        f"no picture can be written as {name!r} ({_reason(error)}; the name has "
        f"{len(os.fsencode(name))} bytes); choose another"
    )


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
