"""Pictures as files: captions in tables, in text and JSON files beside each, or none.

    metadata.jsonl, metadata.csv   `file_name` (from the table's folder), the fields of `fields.py`
    x.png  x.txt x.caption         the whole text is one caption
    x.png  x.json                  the same fields
    the released code's files      see `official.py`

Which file stands beside which picture: see `beside.py`. A picture has the captions of all of them,
each text once. Text that cannot be decoded refuses its picture; a file that nothing was read of is
named. A key is the path below the folder without its suffix; where two pictures share that, the
later ones keep their suffix.
"""

from collections.abc import Iterable
from pathlib import Path

from opensana.datasets.record import Caption
from opensana.datasets.sources.beside import TEXTS, Neighbours, is_picture, stem_of, suffix_of
from opensana.datasets.sources.fields import MOST_TEXT_BYTES, Row, captions_beside, facts_of
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
        note = self.note(name)
        try:
            with self._files.open(name) as file:
                beside = self._neighbours.of(name)
                rows, own = self._tables.rows.get(name, []), self._rows(beside)
                captions = self._captions(name, beside, rows, own)
                facts = {k: v for row in (*own, *rows) for k, v in facts_of(row, note).items()}
                key = self._key(name, (*rows, *own))
                if self.add(key, file, name, captions=captions, facts=facts):
                    self._pictures.append(self._files.visible[name])
        except (OSError, DataError) as error:
            self.reject(name, str(error))

    def _key(self, name: str, rows: Iterable[Row]) -> str:
        for row in rows:
            if isinstance(own := row.get("key"), str) and own:
                return own
        return name if stem_of(name) in self else stem_of(name)

    def _rows(self, beside: Iterable[str]) -> list[Row]:
        names = [name for name in beside if name in self._json.rows]
        self._files.read.update(names)
        return [self._json.rows[name] for name in names]

    def _captions(
        self, name: str, beside: Iterable[str], rows: Iterable[Row], own: Iterable[Row]
    ) -> tuple[Caption, ...]:
        """DataError if some of what describes the picture cannot be read."""
        texts = [text for other in beside if (text := self._text(other)) is not None]
        self._tables.check(name)
        parts, note = self._json.parts(name), self.note(name)
        captions = captions_beside(texts, own, note, first=rows)
        return captions_with_suffixes(captions, parts, note) if parts else captions

    def _text(self, name: str) -> str | None:
        if suffix_of(name) not in TEXTS:
            return None
        content = self._files.content(name, most=MOST_TEXT_BYTES)
        if content is None:
            self.note(name)(self._files.left_out[name])
            return None
        self._files.read.add(name)
        try:
            return decode_text(content)
        except DataError as error:
            raise DataError(f"has a text that cannot be read: {name!r} {error}") from None
