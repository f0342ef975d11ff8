"""The JSON files of a folder of pictures: sidecar rows, and the official code's files."""

import posixpath
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from opensana.datasets.sources import official
from opensana.datasets.sources.beside import PICTURES, ROWS, one_spelling, stem_of, suffix_of
from opensana.datasets.sources.fields import MOST_JSON_BYTES, Row, load_object, tidy
from opensana.datasets.sources.files import Files
from opensana.datasets.sources.indexed import Indexed
from opensana.errors import DataError


class JsonFiles:
    """The row of each file, and the official layout's files by stem and suffix."""

    def __init__(self, files: Files, source: Indexed, pictures: list[str]) -> None:
        self.files, self.source = files, source
        self.rows: dict[str, Row] = {}
        self._parts: dict[str, dict[str, Any]] = defaultdict(dict)
        self._stems = {one_spelling(stem_of(name)) for name in pictures}
        self._faults: dict[str, str] = {}
        for name in files.visible:
            if suffix_of(name) in ROWS:
                self._read(name)

    def parts(self, picture: str) -> Mapping[str, Any]:
        """The official layout's files of a picture by suffix; DataError if one cannot be read."""
        stem = one_spelling(stem_of(picture))
        if stem in self._faults:
            raise DataError(self._faults[stem])
        return self._parts.get(stem, {})

    def _read(self, name: str) -> None:
        content = self.files.content(name, most=MOST_JSON_BYTES)
        if content is None:
            self.source.warner(name)(self.files.left_out[name])
            return
        try:
            row = load_object(content, self.source.warner(name))
        except DataError as error:
            self._refuse(name, str(error))
            return
        if posixpath.basename(name) == official.FOLDER_INDEX:
            self._take_index(name, row)
        elif not self._take_part(name, row):
            self.rows[name] = row

    def _take_index(self, name: str, row: Row) -> None:
        """meta_data.json may name pictures that are not there."""
        self.files.read.add(name)
        keys = row.get("img_names", [])
        for key in keys if isinstance(keys, list) else []:
            where = posixpath.dirname(name)
            if isinstance(key, str) and posixpath.join(where, one_spelling(key)) not in self._stems:
                self.source.reject(name, f"names {tidy(key)!r}, which is not there")

    def _take_part(self, name: str, row: Row) -> bool:
        where, stem = posixpath.split(one_spelling(stem_of(name)))
        for key, value in row.items():
            key = one_spelling(key)
            picture = posixpath.join(where, key)
            if isinstance(value, Mapping) and stem.startswith(key) and picture in self._stems:
                self._parts[picture][stem[len(key) :]] = value
                self.files.read.add(name)
                return True
        return False

    def _refuse(self, name: str, reason: str) -> None:
        """Refuse the picture that the name points to: x.json, x_VLM.json, x.png.json."""
        if posixpath.basename(name) == official.FOLDER_INDEX:
            self.source.reject(name, reason)
            return
        stem = one_spelling(stem_of(name))
        for end in range(len(stem), 0, -1):
            rest = stem[end:]
            if stem[:end] in self._stems and (rest[:1] in ("", "_") or rest.lower() in PICTURES):
                self._faults[stem[:end]] = f"has a file that cannot be read: {name!r} {reason}"
                self.files.read.add(name)
                return
        self.files.left_out[name] = reason
