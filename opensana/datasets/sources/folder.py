"""A folder of pictures, with captions in tables, in text and JSON files beside them, or none.

    metadata.jsonl, metadata.csv   `file_name` (from the table's folder), the fields of `fields.py`
    x.png  x.txt x.caption         the whole text is one caption
    x.png  x.json                  the same fields
    the official code's files      see `official.py`

`beside.py` matches files to pictures. A picture gets the captions of all its files, each text once.
A picture whose text cannot be decoded is refused; files of which nothing was read are listed. A key
is the path below the folder without suffix; if two pictures share it, the later ones keep theirs.
"""

from collections.abc import Iterable
from pathlib import Path

from opensana.datasets.record import Caption
from opensana.datasets.sources.beside import TEXTS, Neighbours, is_picture, stem_of, suffix_of
from opensana.datasets.sources.fields import MOST_TEXT_BYTES, Row, captions_beside, measurements_of
from opensana.datasets.sources.files import Files, read_inside
from opensana.datasets.sources.indexed import Indexed
from opensana.datasets.sources.json_files import JsonFiles
from opensana.datasets.sources.official import captions_with_suffixes
from opensana.datasets.sources.tables import Tables
from opensana.errors import DataError
from opensana.files.encodings import decode_text
from opensana.pictures.decode import LIMITS, Limits


class FolderSource(Indexed):
    """The pictures below a folder, in the order of their names."""

    def __init__(self, folder: Path, *, limits: Limits = LIMITS) -> None:
        super().__init__(str(folder), limits=limits)
        self._folder, self._files = folder, Files(folder, self.reject)
        self._pictures: list[Path] = []
        self._tables = Tables(self._files, self.reject)
        rows = self._tables.rows
        names = [name for name in self._files.visible if is_picture(name) or name in rows]
        self._json = JsonFiles(self._files, self, names)
        self._neighbours = Neighbours(self._files.visible, names)
        for name in names:
            self._take(name)
        self.count_files(self._files.present, self._files.read, self._files.left_out)

    def picture(self, index: int) -> bytes:
        try:
            return read_inside(self._pictures[index], self._folder, most=self.limits.bytes)
        except DataError as error:
            raise DataError(f"the picture {self.records[index].key!r} {error}") from error

    def _take(self, name: str) -> None:
        warn = self.warner(name)
        try:
            with self._files.open(name) as file:
                beside = self._neighbours.of(name)
                rows = self._tables.rows.get(name, [])
                used = [other for other in beside if other in self._json.rows]
                self._files.read.update(used)
                own = [self._json.rows[other] for other in used]
                captions = self._captions(name, beside, rows, own)
                measurements: dict[str, float] = {}
                for row in (*own, *rows):
                    measurements |= measurements_of(row, warn)
                keys = (row.get("key") for row in (*rows, *own))
                stem = name if stem_of(name) in self else stem_of(name)
                key = next((key for key in keys if isinstance(key, str) and key), stem)
                if self.add(key, file, name, captions=captions, measurements=measurements):
                    self._pictures.append(self._files.visible[name])
        except (OSError, DataError) as error:
            self.reject(name, str(error))

    def _captions(
        self, name: str, beside: Iterable[str], rows: Iterable[Row], own: Iterable[Row]
    ) -> tuple[Caption, ...]:
        """DataError if a text or a row of the picture cannot be read."""
        texts = [text for other in beside if (text := self._text(other)) is not None]
        self._tables.check(name)
        parts, warn = self._json.parts(name), self.warner(name)
        captions = captions_beside(texts, own, warn, first=rows)
        return captions_with_suffixes(captions, parts, warn) if parts else captions

    def _text(self, name: str) -> str | None:
        if suffix_of(name) not in TEXTS:
            return None
        content = self._files.content(name, most=MOST_TEXT_BYTES)
        if content is None:
            self.warner(name)(self._files.left_out[name])
            return None
        self._files.read.add(name)
        try:
            return decode_text(content)
        except DataError as error:
            raise DataError(f"has a text that cannot be read: {name!r} {error}") from None
