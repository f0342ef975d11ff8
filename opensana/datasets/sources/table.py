"""Tables with a column of encoded images, read by Hugging Face `datasets`: parquet and the hub.

The other columns are the fields of `fields.py`; the key is in `key` or `__key__`, else it is the
row number. A picture given only as a path or URL is refused: nothing outside the table is opened.
Rows are kept in the Arrow cache of `datasets` (HF_DATASETS_CACHE).
"""

from collections.abc import Iterator, Mapping
from typing import Any

from opensana.datasets.sources.fields import captions_of, is_field, measurements_of
from opensana.datasets.sources.indexed import Indexed
from opensana.errors import DataError, MissingExtraError
from opensana.pictures.decode import LIMITS, Limits

PICTURE_COLUMNS = ("image", "picture", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes")
KEY_COLUMNS = ("key", "__key__")
SIZES = ("width", "height")


def datasets() -> Any:
    """The library `datasets`, without progress bars."""
    try:
        import datasets as library
    except ImportError:
        raise MissingExtraError("data", "datasets") from None
    library.disable_progress_bars()
    return library


class TableSource(Indexed):
    """The rows of a `datasets.Dataset`, in their order."""

    def __init__(self, where: str, table: Any, *, limits: Limits = LIMITS) -> None:
        super().__init__(where, limits=limits)
        self.column = _picture_column(where, table)
        if _is_image(table.features[self.column]):
            table = table.cast_column(self.column, datasets().Image(decode=False))
        self._pictures = table.select_columns([self.column])
        self._rows: list[int] = []
        for number, row in _rows(table):
            self._take(number, row)
        # Unknown columns may hold captions, or other pictures.
        known = {self.column, *KEY_COLUMNS, *SIZES}
        names = [n for n in table.features if n not in known and not is_field(n)]
        if names:
            self.warner(where)(f"the columns {', '.join(map(repr, names))} are not read")

    def picture(self, index: int) -> bytes:
        content = _bytes(self._pictures[self._rows[index]][self.column])
        if content is None:
            raise DataError(f"row {self._rows[index]} of {self.where} has no picture")
        return content

    def _take(self, number: int, row: dict[str, Any] | None) -> None:
        where = f"{self.where} row {number}"
        if row is None:
            self.reject(where, "has a text that cannot be read: it is not UTF-8")
            return
        value = row.pop(self.column)
        content = _bytes(value)
        if content is None:
            named = isinstance(value, Mapping) and value.get("path")
            self.reject(where, "only names a picture" if named else "has no picture")
            return
        warn = self.warner(where)
        keys = (row.get(column) for column in KEY_COLUMNS)
        key = next((key for key in keys if isinstance(key, str) and key), f"{number:08}")
        try:
            captions, measurements = captions_of(row, warn), measurements_of(row, warn)
        except DataError as error:
            self.reject(where, f"has a text that cannot be read: it {error}")
            return
        if self.add(key, content, where, captions=captions, measurements=measurements):
            self._rows.append(number)


def _rows(table: Any) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """The rows with their numbers; None for a row whose text is not UTF-8."""
    for number in range(len(table)):
        try:
            yield number, table[number]
        except UnicodeDecodeError:
            yield number, None


def _picture_column(where: str, table: Any) -> str:
    """The column with the `datasets` type Image, else the first with a usual name."""
    images = [name for name, feature in table.features.items() if _is_image(feature)]
    usual = [name for name in PICTURE_COLUMNS if name in table.features]
    for name in images[:1] or usual:
        return name
    raise DataError(
        f"{where} has no column of pictures; expected an image column or one of "
        f"{', '.join(PICTURE_COLUMNS)}, got {', '.join(table.features)}"
    )


def _is_image(feature: Any) -> bool:
    return isinstance(feature, datasets().Image)


def _bytes(value: Any) -> bytes | None:
    content = value.get("bytes") if isinstance(value, Mapping) else value
    return content if isinstance(content, bytes) else None
