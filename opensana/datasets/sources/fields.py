"""The fields of a sample in text files, JSON rows and table columns.

    text                     one caption or a list; `caption` and `prompt` are synonyms
    caption_NAME             a caption written by NAME
    captions                 everything: texts, or mappings with the fields of `Caption`
    facts                    measurements: numbers by name

opensana writes `captions`; the other text fields are then copies and are not read. The case of
text, caption and prompt is ignored. Nothing is dropped silently: `warn` is called for whatever is
changed or left out, and text that cannot be decoded is a DataError.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, fields
from itertools import chain
from typing import Any

from opensana.datasets.record import Caption, Record
from opensana.files.encodings import SURROGATE, decode_text

Warn = Callable[[str], None]
Row = Mapping[str, Any]

MOST_CHARACTERS = 1 << 16
MOST_TEXT_BYTES = 4 * MOST_CHARACTERS
MOST_JSON_BYTES = 16 << 20
MOST_CAPTIONS = 1000
TEXT_FIELDS = ("text", "caption", "prompt")
OTHERS_CAPTION = re.compile(r"caption_(.+)")
CAPTION_FIELDS = tuple(field.name for field in fields(Caption))
NO_TEXTS = frozenset({"facts", "key", "__key__", "file_name"})
"""Fields of a row whose text is no caption."""
PLAIN = asdict(Caption(""))


def sanitise(text: str, warn: Warn) -> str:
    """A caption that every format can store; "" if it is left out.

    Lone surrogates become U+FFFD; NULs and surrounding whitespace are removed. Line breaks stay.
    """
    if SURROGATE.search(text):
        warn("text that is not UTF-8 was replaced by U+FFFD")
        text = SURROGATE.sub("\ufffd", text)
    if "\0" in text:
        warn("NUL characters were removed from a caption")
        text = text.replace("\0", "")
    text = text.strip()
    if not text:
        warn("an empty caption was left out")
    if len(text) > MOST_CHARACTERS:
        warn(f"a caption of {len(text):,} characters was left out; the most is {MOST_CHARACTERS:,}")
        return ""
    return text


def tidy(name: str) -> str:
    """A name or setting that every format can store."""
    return sanitise(name, lambda _: None)


def load_object(content: bytes, warn: Warn) -> Row:
    """Parse a JSON object; {} and a warning if it is none, DataError if it is no text."""
    return parsed_object(decode_text(content), warn)


def parsed_object(text: str, warn: Warn) -> Row:
    """Parse a JSON object; {} and a warning if it is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        warn(f"JSON that cannot be read was left out ({error})")
        return {}
    if not isinstance(value, dict):
        warn(f"JSON was left out: expected an object, got {type(value).__name__}")
        return {}
    return value


def is_field(name: str) -> bool:
    """Whether a field of this name is read at all."""
    plain = name.lower() in TEXT_FIELDS or name in ("captions", "facts")
    return plain or OTHERS_CAPTION.fullmatch(name) is not None


def captions_beside(
    texts: Iterable[str], rows: Iterable[Row], warn: Warn, *, first: Iterable[Row] = ()
) -> tuple[Caption, ...]:
    """The captions of a picture, from the rows `first`, then its text files, then other rows.

    A text that a row repeats is taken from the row, which may have more fields.
    """
    rows, first = list(rows), list(first)
    leading = [caption for row in first for caption in captions_of(row, warn)]
    listed = [caption for row in rows for caption in captions_of(row, warn)]
    known = {caption.text for caption in (*leading, *listed)}
    own = [text for text in dict.fromkeys(sanitise(text, warn) for text in texts) if text]
    plain = [Caption(text) for text in own if text not in known]
    if not (leading or plain or listed):
        warn_of_unread_texts([*first, *rows], warn)
    return (*leading, *plain, *listed)


def warn_of_unread_texts(rows: Iterable[Row], warn: Warn) -> None:
    """Warn of text in unknown fields of rows without a caption."""
    unread: set[str] = set()
    for name, value in (item for row in rows for item in row.items()):
        parts = list(value.values()) if isinstance(value, Mapping) else value
        items = parts if isinstance(parts, list | tuple) else [parts]
        if any(isinstance(item, str) and item.strip() for item in items):
            unread.add(name)
    if names := sorted(unread - NO_TEXTS):
        shown = ", ".join(repr(name[:40]) for name in names[:10])
        warn(f"no caption: the fields {shown} are not read; one is expected in text or caption")


def captions_of(row: Row, warn: Warn) -> tuple[Caption, ...]:
    """The captions of a row."""
    listed = _list(row.get("captions"), warn)
    plain = () if listed else _plain_captions(row, warn)
    found = chain((_caption(item, warn) for item in listed), plain)
    captions = tuple(caption for caption in found if caption)
    if len(captions) > MOST_CAPTIONS:
        warn(f"{len(captions):,} captions were cut to {MOST_CAPTIONS:,}")
    return captions[:MOST_CAPTIONS]


def measurements_of(row: Row, warn: Warn) -> dict[str, float]:
    """The measurements of a row."""
    found = _mapping(row.get("facts"), "facts", warn)
    numbers = {name: value for name, value in found.items() if _is_number(value)}
    for name in found.keys() - numbers.keys():
        warn(f"the fact {name!r} was left out: {found[name]!r:.40} is no finite number")
    return {tidy(name): float(value) for name, value in numbers.items()}


def row_of(record: Record) -> dict[str, Any]:
    """The row with a record's captions and measurements; its first caption is `text`."""
    row: dict[str, Any] = {}
    if record.captions:
        row["text"] = record.captions[0].text
        row["captions"] = [
            {name: v for name, v in vars(c).items() if name == "text" or v != PLAIN[name]}
            for c in record.captions
        ]
    if record.measurements:
        row["facts"] = dict(record.measurements)
    return row


def _plain_captions(row: Row, warn: Warn) -> Iterable[Caption | None]:
    for text in _own_texts(row):
        yield _caption(text, warn)
    for name, value in row.items():
        if match := OTHERS_CAPTION.fullmatch(name):
            for text in _texts(value):
                yield _caption({"text": text, "captioner": match[1]}, warn)


def _own_texts(row: Row) -> list[str]:
    """The texts of the first non-empty synonym of `text`, in any case."""
    by_case = sorted(row, key=lambda name: name not in TEXT_FIELDS)
    names = (name for field in TEXT_FIELDS for name in by_case if name.lower() == field)
    given = [texts for name in names if (texts := _texts(row[name]))]
    filled = (texts for texts in given if any(text.strip() for text in texts))
    return next(filled, given[0] if given else [])


def _texts(value: Any) -> list[str]:
    """The texts of a cell; some tables store bytes."""
    items = value if isinstance(value, list | tuple) else [value]
    texts = (decode_text(item) if isinstance(item, bytes) else item for item in items)
    return [text for text in texts if isinstance(text, str)]


def _caption(item: Any, warn: Warn) -> Caption | None:
    values = {"text": item} if isinstance(item, str) else item
    if not isinstance(values, Mapping) or not isinstance(values.get("text"), str):
        warn(f"a caption was left out: expected a text, got {item!r:.60}")
        return None
    for name in values.keys() - set(CAPTION_FIELDS):
        warn(f"the field {name!r:.40} of a caption was left out; there are {CAPTION_FIELDS}")
    text = sanitise(values["text"], warn)
    if not text:
        return None
    words = {
        name: tidy(str(values[name]))
        for name in ("captioner", "version", "prompt", "scorer")
        if values.get(name)
    }
    score = values.get("score")
    if score is not None and not _is_number(score):
        warn(f"a score was left out: {score!r:.40} is no finite number")
        score = None
    settings = _mapping(values.get("settings"), "settings", warn)
    return Caption(text, **words, settings=settings, score=None if score is None else float(score))


def _list(value: Any, warn: Warn) -> list[Any]:
    """A list, also as JSON text, as in CSV; a plain text is a list of one."""
    value = _unpacked(value)
    if value is None or isinstance(value, list | tuple):
        return list(value or ())
    if isinstance(value, str):
        return [value]
    warn(f"captions were left out: expected a list, got {value!r:.60}")
    return []


def _mapping(value: Any, name: str, warn: Warn) -> dict[str, Any]:
    value = _unpacked(value)
    if value is None or isinstance(value, Mapping):
        return dict(value or {})
    warn(f"{name} were left out: expected names and values, got {value!r:.60}")
    return {}


def _unpacked(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value else None
    except (ValueError, RecursionError):
        return value


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e300 and math.isfinite(value)
