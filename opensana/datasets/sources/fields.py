"""The fields of one sample, as files, JSON rows and table columns carry them.

    text                     one caption or a list; `caption` and `prompt` mean the same
    caption_NAME             a caption that NAME wrote
    captions                 everything: texts, or mappings with the fields of `Caption`
    facts                    numbers by name

`captions` is what opensana writes; where it stands, the other text fields repeat it and are not
read. The case of text, caption and prompt is free. Nothing is dropped in silence: `note` is told
what was changed or left out, and why, and text that cannot be decoded is a DataError.
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

Note = Callable[[str], None]
Row = Mapping[str, Any]

MOST_CHARACTERS = 1 << 16
MOST_TEXT_BYTES = 4 * MOST_CHARACTERS
MOST_JSON_BYTES = 16 << 20
MOST_CAPTIONS = 1000
TEXT_FIELDS = ("text", "caption", "prompt")
OTHERS_CAPTION = re.compile(r"caption_(.+)")
CAPTION_FIELDS = tuple(field.name for field in fields(Caption))
NO_TEXTS = frozenset({"facts", "key", "__key__", "file_name"})
"""Fields of a row in which words are no caption."""
PLAIN = asdict(Caption(""))


def clean(text: str, note: Note) -> str:
    """A caption that every format can carry; "" for one that is left out.

    Lone surrogates become U+FFFD, NULs and the space around it go. Lines are kept.
    """
    if SURROGATE.search(text):
        note("text that is not UTF-8 was replaced by U+FFFD")
        text = SURROGATE.sub("\ufffd", text)
    if "\0" in text:
        note("NUL characters were removed from a caption")
        text = text.replace("\0", "")
    text = text.strip()
    if not text:
        note("an empty caption was left out")
    if len(text) > MOST_CHARACTERS:
        note(f"a caption of {len(text):,} characters was left out; the most is {MOST_CHARACTERS:,}")
        return ""
    return text


def tidy(name: str) -> str:
    """A name or a setting that every format can carry."""
    return clean(name, lambda _: None)


def load_object(content: bytes, note: Note) -> Row:
    """A JSON object, or an empty one when the content is none; DataError if it is no text."""
    return parsed_object(decode_text(content), note)


def parsed_object(text: str, note: Note) -> Row:
    """A JSON object, or an empty one when the text is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        note(f"JSON that cannot be read was left out ({error})")
        return {}
    if not isinstance(value, dict):
        note(f"JSON was left out: expected an object, got {type(value).__name__}")
        return {}
    return value


def is_field(name: str) -> bool:
    """Whether a field of this name is read."""
    plain = name.lower() in TEXT_FIELDS or name in ("captions", "facts")
    return plain or OTHERS_CAPTION.fullmatch(name) is not None


def captions_beside(
    texts: Iterable[str], rows: Iterable[Row], note: Note, *, first: Iterable[Row] = ()
) -> tuple[Caption, ...]:
    """The captions of a picture: of the rows that come first, its text files and other rows.

    A text that a row repeats is left to the row, which may know more of it.
    """
    rows, first = list(rows), list(first)
    leading = [caption for row in first for caption in captions_of(row, note)]
    listed = [caption for row in rows for caption in captions_of(row, note)]
    known = {caption.text for caption in (*leading, *listed)}
    own = [text for text in dict.fromkeys(clean(text, note) for text in texts) if text]
    plain = [Caption(text) for text in own if text not in known]
    if not (leading or plain or listed):
        note_texts_not_read([*first, *rows], note)
    return (*leading, *plain, *listed)


def note_texts_not_read(rows: Iterable[Row], note: Note) -> None:
    """Say which texts of rows without a caption stand in fields that nobody reads."""
    names = {name for row in rows for name, value in row.items() if _holds_text(value)}
    if names := sorted(names - NO_TEXTS):
        shown = ", ".join(repr(name[:40]) for name in names[:10])
        note(f"no caption: the fields {shown} are not read; one is expected in text or caption")


def captions_of(row: Row, note: Note) -> tuple[Caption, ...]:
    """The captions of a row."""
    listed = _list(row.get("captions"), note)
    plain = () if listed else _plain_captions(row, note)
    found = chain((_caption(item, note) for item in listed), plain)
    captions = tuple(caption for caption in found if caption)
    if len(captions) > MOST_CAPTIONS:
        note(f"{len(captions):,} captions were cut to {MOST_CAPTIONS:,}")
    return captions[:MOST_CAPTIONS]


def facts_of(row: Row, note: Note) -> dict[str, float]:
    """The measured numbers of a row."""
    facts = _mapping(row.get("facts"), "facts", note)
    numbers = {name: value for name, value in facts.items() if _is_number(value)}
    for name in facts.keys() - numbers.keys():
        note(f"the fact {name!r} was left out: {facts[name]!r:.40} is no finite number")
    return {tidy(name): float(value) for name, value in numbers.items()}


def row_of(record: Record) -> dict[str, Any]:
    """The row that gives back the captions and facts of a record, its first caption as `text`."""
    row: dict[str, Any] = {}
    if record.captions:
        row["text"] = record.captions[0].text
        row["captions"] = [_changed(caption) for caption in record.captions]
    if record.facts:
        row["facts"] = dict(record.facts)
    return row


def _changed(caption: Caption) -> dict[str, Any]:
    """The fields of a caption that are not their defaults, and its text."""
    values = {name: getattr(caption, name) for name in CAPTION_FIELDS}
    return {name: v for name, v in values.items() if name == "text" or v != PLAIN[name]}


def _plain_captions(row: Row, note: Note) -> Iterable[Caption | None]:
    for text in _own_texts(row):
        yield _caption(text, note)
    for name, value in row.items():
        if match := OTHERS_CAPTION.fullmatch(name):
            for text in _texts(value):
                yield _caption({"text": text, "captioner": match[1]}, note)


def _own_texts(row: Row) -> list[str]:
    """Of the fields that mean the same the first that says something, in whatever case."""
    by_case = sorted(row, key=lambda name: name not in TEXT_FIELDS)
    names = (name for field in TEXT_FIELDS for name in by_case if name.lower() == field)
    given = [texts for name in names if (texts := _texts(row[name]))]
    filled = (texts for texts in given if any(text.strip() for text in texts))
    return next(filled, given[0] if given else [])


def _texts(value: Any) -> list[str]:
    """The texts of a cell; some tables keep them as bytes."""
    items = value if isinstance(value, list | tuple) else [value]
    texts = (decode_text(item) if isinstance(item, bytes) else item for item in items)
    return [text for text in texts if isinstance(text, str)]


def _holds_text(value: Any) -> bool:
    if isinstance(value, Mapping):
        value = list(value.values())
    items = value if isinstance(value, list | tuple) else [value]
    return any(isinstance(item, str) and item.strip() for item in items)


def _caption(item: Any, note: Note) -> Caption | None:
    values = {"text": item} if isinstance(item, str) else item
    if not isinstance(values, Mapping) or not isinstance(values.get("text"), str):
        note(f"a caption was left out: expected a text, got {item!r:.60}")
        return None
    for name in values.keys() - set(CAPTION_FIELDS):
        note(f"the field {name!r:.40} of a caption was left out; there are {CAPTION_FIELDS}")
    text = clean(values["text"], note)
    if not text:
        return None
    words = {
        name: tidy(str(values[name]))
        for name in ("captioner", "version", "prompt", "scorer")
        if values.get(name)
    }
    score = values.get("score")
    if score is not None and not _is_number(score):
        note(f"a score was left out: {score!r:.40} is no finite number")
        score = None
    settings = _mapping(values.get("settings"), "settings", note)
    return Caption(text, **words, settings=settings, score=None if score is None else float(score))


def _list(value: Any, note: Note) -> list[Any]:
    """A list, or the one in a text: CSV has no other way to hold it. A bare text is one item."""
    value = _unpacked(value)
    if value is None or isinstance(value, list | tuple):
        return list(value or ())
    if isinstance(value, str):
        return [value]
    note(f"captions were left out: expected a list, got {value!r:.60}")
    return []


def _mapping(value: Any, name: str, note: Note) -> dict[str, Any]:
    value = _unpacked(value)
    if value is None or isinstance(value, Mapping):
        return dict(value or {})
    note(f"{name} were left out: expected names and values, got {value!r:.60}")
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
