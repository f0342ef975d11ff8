"""Match caption files to pictures by name (sidecar files).

    x.png  x.txt x.caption x.json          the same stem; the case of suffixes is ignored
    x.png  x.png.txt x.png.json            the full name, as download tools write it

Names that differ only in Unicode normalisation (NFC and NFD: macOS changes it) are equal, unless
both exist as pictures: then each has the files of its own spelling.
"""

import posixpath
import unicodedata
from collections import defaultdict
from collections.abc import Iterable

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp"})
# Reported as refused instead of ignored: they are meant as pictures.
FOREIGN = frozenset(
    {".apng", ".avif", ".bmp", ".eps", ".fit", ".fits", ".gif", ".heic", ".heif", ".ico", ".jfif"}
    | {".jp2", ".jxl", ".pbm", ".pgm", ".pnm", ".ppm", ".ps", ".psd", ".svg", ".tga", ".tif"}
    | {".tiff"}
)
TEXTS = frozenset({".txt", ".caption"})
ROWS = frozenset({".json"})
OF_SYSTEMS = frozenset({"__macosx", "thumbs.db", "desktop.ini"})


def one_spelling(name: str) -> str:
    """The name in Unicode normalisation form NFC."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def stem_of(name: str) -> str:
    """a/22.05.png -> a/22.05"""
    return posixpath.splitext(name)[0]


def suffix_of(name: str) -> str:
    """a/22.05.PNG -> .png"""
    return posixpath.splitext(name)[1].lower()


def is_picture(name: str) -> bool:
    """Whether the suffix is that of a picture, also of a format that is refused."""
    return suffix_of(name) in PICTURES or suffix_of(name) in FOREIGN


def is_hidden(name: str) -> bool:
    """Whether a part of the path is hidden (.name) or a system file (__MACOSX, Thumbs.db)."""
    return any(part.startswith(".") or part.lower() in OF_SYSTEMS for part in name.split("/"))


class Neighbours:
    """The text and JSON files among names, by picture."""

    def __init__(self, names: Iterable[str], pictures: Iterable[str]) -> None:
        self._spellings = {spelling for name in pictures for spelling in (name, stem_of(name))}
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        for name in names:
            if suffix_of(name) in TEXTS or suffix_of(name) in ROWS:
                self._by_stem[one_spelling(stem_of(name))].append(name)

    def of(self, picture: str) -> list[str]:
        """The caption files of a picture, in the order of the names."""
        return [name for spelling in (stem_of(picture), picture) for name in self.named(spelling)]

    def named(self, stem: str) -> list[str]:
        """The files with this stem, unless their own spelling belongs to another picture."""
        near = self._by_stem.get(one_spelling(stem), ())
        return [n for n in near if stem_of(n) == stem or stem_of(n) not in self._spellings]
