"""The fields of one sample, as files, JSON rows and table columns carry them.

    text                     one caption or a list; `caption` and `prompt` mean the same
    caption_NAME             a caption that NAME wrote
    captions                 everything: texts, or mappings with the fields of `Caption`
    facts                    numbers by name

`captions` is what opensana writes; where it stands, the other text fields repeat it and are not
read. Nothing is dropped in silence: `note` is told what was changed or left out, and why.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, fields
from itertools import chain
from typing import Any

from opensana.data.record import Caption, Record

Note = Callable[[str], None]
Row = Mapping[str, Any]

MOST_CHARACTERS = 1 << 16
MOST_TEXT_BYTES = 4 * MOST_CHARACTERS
MOST_JSON_BYTES = 16 << 20
MOST_CAPTIONS = 1000
TEXT_FIELDS = ("text", "caption", "prompt")
OTHERS_CAPTION = re.compile(r"caption_(.+)")
CAPTION_FIELDS = tuple(field.name for field in fields(Caption))
PLAIN = asdict(Caption(""))
SURROGATE = re.compile("[\ud800-\udfff]")


def clean(text: str | bytes, note: Note) -> str:
    """A caption that every format can carry; "" for one that is left out.

    Broken UTF-8 and lone surrogates become U+FFFD, NULs and the space around it go. Lines are kept.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8-sig", "surrogateescape")
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
    """A JSON object, or an empty one when the content is none."""
    try:
        value = json.loads(content.decode("utf-8-sig", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        note(f"JSON that cannot be read was left out ({error})")
        return {}
    if not isinstance(value, dict):
        note(f"JSON was left out: expected an object, got {type(value).__name__}")
        return {}
    return value


def captions_beside(text: bytes | None, row: Row, note: Note) -> tuple[Caption, ...]:
    """The captions of a picture with a text file and a row beside it, each text once."""
    listed = captions_of(row, note)
    if text is None or row.get("captions"):
        return listed
    cleaned = clean(text, note)
    first = (Caption(cleaned),) if cleaned else ()
    return first + tuple(caption for caption in listed if caption.text != cleaned)


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
    own = next((name for name in TEXT_FIELDS if _texts(row.get(name))), "")
    for text in _texts(row.get(own)):
        yield _caption(text, note)
    for name, value in row.items():
        if match := OTHERS_CAPTION.fullmatch(name):
            for text in _texts(value):
                yield _caption({"text": text, "captioner": match[1]}, note)


def _texts(value: Any) -> list[str]:
    items = value if isinstance(value, list | tuple) else [value]
    return [item for item in items if isinstance(item, str)]


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
    """A list, or the one in a text: CSV has no other way to hold it."""
    value = _unpacked(value)
    if value is None or isinstance(value, list | tuple):
        return list(value or ())
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
