"""The files below a folder that belongs to somebody else: nothing outside it is ever read.

Links to folders are not followed, links to files only when they stay inside, and only regular
files are opened, so that a pipe or a device cannot hold up a run.
"""

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from opensana.datasets.sources.beside import is_hidden, one_spelling
from opensana.errors import DataError

Refuse = Callable[[str, str], None]


class Files:
    """The files of a folder by name: those that count, and those of them that were read."""

    def __init__(self, folder: Path, refuse: Refuse) -> None:
        self.folder = folder
        self.present = files_below(folder, refuse)
        self.visible = {name: path for name, path in self.present.items() if not is_hidden(name)}
        self.read: set[str] = set()
        self.left_out: dict[str, str] = {}
        """Why a file that was meant to be read could not be."""
        self._spelt = {one_spelling(name): name for name in self.visible}

    def find(self, name: str) -> str | None:
        """The file of this name, however its accents are spelt."""
        return name if name in self.visible else self._spelt.get(one_spelling(name))

    def open(self, name: str) -> BinaryIO:
        """DataError unless it is a regular file inside the folder; it counts as read."""
        self.read.add(name)
        return open_inside(self.visible[name], self.folder)

    def content(self, name: str, *, most: int) -> bytes | None:
        """What is in it; nothing, and why in `left_out`, where it cannot be had."""
        try:
            return read_inside(self.visible[name], self.folder, most=most)
        except DataError as error:
            self.left_out[name] = f"{error}; it was left out"
            return None


def files_below(folder: Path, refuse: Refuse) -> dict[str, Path]:
    """Every file below a folder by its relative name with "/", in the order of the names' bytes.

    Links to folders and unreadable folders go to `refuse`, unless they are hidden.
    """
    return dict(sorted(_walk(folder, refuse), key=lambda item: os.fsencode(item[0])))


def _walk(folder: Path, refuse: Refuse) -> Iterator[tuple[str, Path]]:
    def refuse_visible(path: Path, reason: str) -> None:
        if not is_hidden(name := _relative(path, folder)):
            refuse(name, reason)

    def unreadable(error: OSError) -> None:
        refuse_visible(Path(error.filename), f"cannot be listed ({error.strerror})")

    for where, folders, names in os.walk(folder, onerror=unreadable):
        here = Path(where)
        for name in [name for name in folders if (here / name).is_symlink()]:
            folders.remove(name)
            refuse_visible(here / name, "is a link to a folder; links are not followed")
        for name in names:
            yield _relative(here / name, folder), here / name


def open_inside(path: Path, root: Path) -> BinaryIO:
    """The file, open for reading; DataError unless it is a regular file inside `root`."""
    try:
        if path.is_symlink() and not _is_inside(path, root):
            raise DataError("is a link that leads out of the data set")
        if not stat.S_ISREG(path.stat().st_mode):
            raise DataError("is not a regular file")
        return path.open("rb")
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror or error})") from None
    except ValueError as error:
        raise DataError(f"cannot be read ({error})") from None


def read_inside(path: Path, root: Path, *, most: int) -> bytes:
    """The content of a file; DataError if it is longer than `most` bytes or cannot be read."""
    with open_inside(path, root) as file:
        try:
            content = file.read(most + 1)
        except OSError as error:
            raise DataError(f"cannot be read ({error.strerror or error})") from None
    if len(content) > most:
        raise DataError(f"has more than {most:,} bytes")
    return content


def _is_inside(path: Path, root: Path) -> bool:
    real, real_root = os.path.realpath(path), os.path.realpath(root)
    return os.path.commonpath([real, real_root]) == real_root


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
