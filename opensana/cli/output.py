"""Where pictures go: a pattern with {seed} and {index} becomes one path a picture.

An existing file is kept and the new picture gets `-1`, `-2`, ... before its suffix, unless the
user asked to overwrite. Everything that can be wrong with the target is found before drawing.
"""

import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from string import Formatter

from opensana.errors import RequestError, near

DEFAULT_NAME = "out_{seed}.png"
PLACEHOLDERS = ("seed", "index")


class PictureFiles:
    """Names the pictures of one run."""

    def __init__(self, pattern: str, *, overwrite: bool) -> None:
        self.folder, self.name = _split(pattern)
        self.overwrite = overwrite
        self.given: set[Path] = set()
        _check_name(self.name)
        _check_folder(self.folder)

    def path(self, *, seed: int | None, index: int) -> Path:
        """The file of the next picture."""
        wanted = self.folder / self.name.format(seed=seed, index=index)
        path = next(choice for choice in _numbered(wanted) if not self._taken(choice))
        self.given.add(path)
        return path

    def _taken(self, path: Path) -> bool:
        # Two pictures of one run never share a file, whatever the user said about older ones.
        return path in self.given or (path.exists() and not self.overwrite)


def _numbered(path: Path) -> Iterator[Path]:
    yield path
    for number in count(1):
        yield path.with_name(f"{path.stem}-{number}{path.suffix}")


def _split(pattern: str) -> tuple[Path, str]:
    path = Path(pattern)
    if pattern.endswith(("/", "\\")) or path.is_dir():
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
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RequestError(
            f"cannot write to the output folder {str(folder)!r} ({error.strerror or error}); "
            "choose another with --output"
        ) from None
