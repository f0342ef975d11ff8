"""Index the members of a tar archive without unpacking it.

Headers are read by `tarfile`, through a file that limits their size; the members' data is not read.
Anything but a regular file with a safe name is refused by name.
"""

import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

BLOCK = 512
MOST_HEADER_BYTES = 1 << 20
MOST_MEMBERS = 10_000_000
PICKLES = frozenset({".pkl", ".pickle", ".pth", ".pt", ".ckpt", ".joblib", ".bin", ".dill"})
KINDS = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
}
Refuse = Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in an archive, and the offset of its bytes."""

    name: str
    offset: int
    size: int


def members(path: Path, refuse: Refuse) -> Iterator[Member]:
    """The usable members in order; `refuse(member, reason)` is called for the others.

    The member is "" if the archive itself is damaged.
    """
    size = path.stat().st_size
    last = -1
    with path.open("rb") as file:
        try:
            with tarfile.open(fileobj=cast(Any, _Headers(file)), mode="r:") as archive:
                for count, info in enumerate(archive, start=1):
                    cast(Any, archive).members = []  # tarfile would keep them all
                    if info.offset_data <= last or info.size < 0 or count > MOST_MEMBERS:
                        refuse("", f"has a broken header at byte {info.offset:,}")
                        return
                    last = info.offset_data
                    if not info.issparse() and info.offset_data + info.size > size:
                        refuse("", f"is cut off inside {info.name!r}")
                        return
                    if fault := _fault(info):
                        refuse(info.name, fault)
                    elif info.isfile():
                        yield Member(info.name, info.offset_data, info.size)
                end = archive.offset
        except (tarfile.TarError, OSError, ValueError, RecursionError, OverflowError) as error:
            refuse("", f"cannot be read on ({error or type(error).__name__})")
            return
        file.seek(end)
        block = file.read(BLOCK)
    if block.strip(b"\0"):
        refuse("", f"has a broken header at byte {end:,}; what follows is lost")
    elif len(block) < BLOCK:
        refuse("", f"ends at byte {end:,} without an end mark: it may be cut off")


def _fault(info: tarfile.TarInfo) -> str:
    """Why a member is refused, or ""."""
    name = PurePosixPath(info.name)
    if info.name.startswith(("/", "\\")) or ":" in info.name.split("/")[0]:
        return "has an absolute path"
    if ".." in name.parts or "\\" in info.name or "\0" in info.name:
        return "has a path that leads out of the archive"
    if info.issparse():
        return "is a sparse file"
    if info.type in KINDS:
        return f"is {KINDS[info.type]}"
    if not (info.isfile() or info.isdir()):
        return f"is of the unknown type {info.type!r}"
    if name.suffix.lower() in PICKLES:
        return "may be a pickle, which could run code; it is never read"
    return ""


class _Headers:
    """The archive as `tarfile` reads it, with a limit on the size of a header."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MOST_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self.file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()
