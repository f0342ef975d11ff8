"""The files below a user's folder; nothing outside of it is read.

Links to folders are not followed, links to files only if they stay inside. Only regular files are
opened: a pipe or a device could block a run.
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
    """The files of a folder by name, and which of them were read."""

    def __init__(self, folder: Path, refuse: Refuse) -> None:
        self.folder = folder
        self.present = files_below(folder, refuse)
        self.visible = {name: path for name, path in self.present.items() if not is_hidden(name)}
        self.read: set[str] = set()
        self.left_out: dict[str, str] = {}
        """Why a file could not be read."""
        self._spelt = {one_spelling(name): name for name in self.visible}

    def find(self, name: str) -> str | None:
        """The file of this name in any Unicode normalisation."""
        return name if name in self.visible else self._spelt.get(one_spelling(name))

    def open(self, name: str) -> BinaryIO:
        """Open a file and count it as read; DataError unless it is a regular file inside."""
        self.read.add(name)
        return open_inside(self.visible[name], self.folder)

    def content(self, name: str, *, most: int) -> bytes | None:
        """A file's content; None, with the reason in `left_out`, if it cannot be read."""
        try:
            return read_inside(self.visible[name], self.folder, most=most)
        except DataError as error:
            self.left_out[name] = f"{error}; it was left out"
            return None


def files_below(folder: Path, refuse: Refuse) -> dict[str, Path]:
    """All files below a folder by relative name with "/", in the order of the names' bytes.

    `refuse` is called for links to folders and unreadable folders, unless hidden.
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
    """Open for reading; DataError unless it is a regular file inside `root`."""
    try:
        real, real_root = os.path.realpath(path), os.path.realpath(root)
        if path.is_symlink() and os.path.commonpath([real, real_root]) != real_root:
            raise DataError("is a link that leads out of the data set")
        if not stat.S_ISREG(path.stat().st_mode):
            raise DataError("is not a regular file")
        return path.open("rb")
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror or error})") from None
    except ValueError as error:
        raise DataError(f"cannot be read ({error})") from None


def read_inside(path: Path, root: Path, *, most: int) -> bytes:
    """A file's content; DataError if it has more than `most` bytes or cannot be read."""
    with open_inside(path, root) as file:
        try:
            content = file.read(most + 1)
        except OSError as error:
            raise DataError(f"cannot be read ({error.strerror or error})") from None
    if len(content) > most:
        raise DataError(f"has more than {most:,} bytes")
    return content


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
