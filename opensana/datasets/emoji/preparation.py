"""Make the prepared emoji folder from its packages; the same bytes every time."""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from opensana.datasets.emoji import fetch
from opensana.datasets.emoji.captions import VENDORS, captions_of
from opensana.datasets.emoji.compose import SIZE
from opensana.datasets.emoji.dataset import (
    LANGUAGES_FILE,
    VERSION,
    EmojiData,
    Languages,
    Record,
)
from opensana.datasets.emoji.languages import CHARACTER, LANGUAGES
from opensana.datasets.emoji.vocabulary import (
    SKIN_TONES,
    WELL_KNOWN,
    family,
    held_out_families,
    normal,
    topic_of,
)
from opensana.errors import DataError
from opensana.files.writing import atomic_folder

FILES = ("pictures.npy", "records.jsonl", LANGUAGES_FILE)
KEYWORDS_FILE = "package/dist/emoji-en-US.json"


def prepare(to: str | Path, *, archives: str | Path | None = None) -> EmojiData:
    """Make the prepared folder from the packages; `archives` holds already packed ones."""
    to = Path(to)
    with TemporaryDirectory(prefix="opensana-emoji-") as download:
        source = Path(archives) if archives is not None else Path(download)
        get = fetch.find if archives is not None else fetch.fetch
        pictures = fetch.read_members(get(fetch.PICTURES, source), _is_picture)
        captions = fetch.read_members(get(fetch.CAPTIONS, source), _is_caption)
        keywords = fetch.read_members(get(fetch.KEYWORDS, source), KEYWORDS_FILE.__eq__)
    return build(to, pictures=pictures, captions={**captions, **keywords})


def build(to: Path, *, pictures: Mapping[str, bytes], captions: Mapping[str, bytes]) -> EmojiData:
    """Write the prepared folder from the members of the packages, by name."""
    emoji = _read_emoji(captions)
    files = _picture_files(pictures)
    kept = [hexcode for hexcode in emoji if hexcode in files]
    if not kept:
        raise DataError("no picture has an English label: are these the right packages?")
    records = _records([emoji[hexcode] for hexcode in kept])
    with atomic_folder(to) as folder:
        array = np.lib.format.open_memmap(
            folder / "pictures.npy", "w+", np.uint8, (len(kept), SIZE, SIZE, 4)
        )
        for index, hexcode in enumerate(kept):
            array[index] = _decode(hexcode, pictures[files[hexcode]])
        array.flush()
        lines = [json.dumps(asdict(record), ensure_ascii=False) for record in records]
        (folder / "records.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
        spoken = _read_languages(captions, [r.hexcode for r in records if r.vocabulary])
        (folder / LANGUAGES_FILE).write_text(json.dumps(spoken, ensure_ascii=False), "utf-8")
        manifest = _manifest(folder, records, pictures_given=len(pictures))
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
    return EmojiData.open(to)


def _is_picture(name: str) -> bool:
    return name.startswith("package/assets/") and name.endswith(".webp")


def _is_caption(name: str) -> bool:
    codes = {f"package/en/shortcodes/{vendor}.json" for vendor in VENDORS}
    spoken = {f"package/{language}/data.json" for language in LANGUAGES}
    return name in {"package/en/data.json", "package/meta/groups.json"} | codes | spoken


def _picture_files(pictures: Mapping[str, bytes]) -> dict[str, str]:
    """Normal hexcode -> member name; the first in the order of names when two have one code."""
    files: dict[str, str] = {}
    for name in sorted(pictures):
        files.setdefault(normal(Path(name).stem), name)
    return files


def _read_emoji(captions: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
    """Normal hexcode -> raw facts, in the order of the standard, skin tones included."""
    try:
        data = json.loads(captions["package/en/data.json"])
        groups = json.loads(captions["package/meta/groups.json"])
        vendors = {
            vendor: {normal(code): value for code, value in json.loads(text).items()}
            for vendor in VENDORS
            for text in [captions.get(f"package/en/shortcodes/{vendor}.json", b"{}")]
        }
        keywords = {
            normal("-".join(f"{ord(sign):X}" for sign in emoji)): tuple(words)
            for emoji, words in json.loads(captions[KEYWORDS_FILE]).items()
        }
    except (KeyError, ValueError) as error:
        raise DataError(f"the caption package cannot be read: {error}") from error
    emoji: dict[str, dict[str, Any]] = {}
    for base in data:
        for entry in [base, *base.get("skins", ())]:
            hexcode = normal(entry["hexcode"])
            codes = {vendor: table.get(hexcode, ()) for vendor, table in vendors.items()}
            emoji[hexcode] = {
                "hexcode": hexcode,
                "label": entry["label"],
                "tags": tuple(base.get("tags", ())),
                "keywords": keywords.get(normal(base["hexcode"]), ()),
                "group": groups["groups"].get(str(base.get("group")), "none"),
                "subgroup": groups["subgroups"].get(str(base.get("subgroup")), "none"),
                "shortcodes": {
                    vendor: (value,) if isinstance(value, str) else tuple(value)
                    for vendor, value in codes.items()
                    if value
                },
            }
    return emoji


def _read_languages(captions: Mapping[str, bytes], kept: Sequence[str]) -> Languages:
    """Labels and tags of the kept emoji in every language that is there, and the characters."""
    found: Languages = {}
    for language in ("en", *LANGUAGES):
        entries = json.loads(captions.get(f"package/{language}/data.json", b"[]"))
        table = {normal(entry["hexcode"]): entry for entry in entries}
        known = {hexcode: table[hexcode] for hexcode in kept if hexcode in table}
        if language == "en":
            found[CHARACTER] = {
                hexcode: list(dict.fromkeys([_characters(hexcode), entry.get("emoji", "")]))
                for hexcode, entry in known.items()
            }
        else:
            found[language] = {
                hexcode: [entry["label"], *entry.get("tags", ())]
                for hexcode, entry in known.items()
            }
    return found


def _characters(hexcode: str) -> str:
    return "".join(chr(int(part, 16)) for part in hexcode.split("-"))


def _records(emoji: Sequence[dict[str, Any]]) -> list[Record]:
    members: dict[str, list[str]] = {}
    for facts in emoji:
        members.setdefault(family(facts["hexcode"]), []).append(facts["label"])
    held_out = held_out_families(members)
    topics = _topics(emoji, held_out)
    labels = {facts["label"].lower(): facts["hexcode"] for facts in reversed(emoji)}
    # In the vocabulary "cat" may name the cat face, because the whole cat is not part of it.
    known = {text: owner for text, owner in labels.items() if owner in topics}
    return [
        _record(index, facts, held_out, topics, known if facts["hexcode"] in topics else labels)
        for index, facts in enumerate(emoji)
    ]


def _record(
    index: int,
    facts: Mapping[str, Any],
    held_out: set[str],
    topics: Mapping[str, str],
    labels: Mapping[str, str],
) -> Record:
    hexcode = facts["hexcode"]
    captions = captions_of(
        hexcode,
        facts["label"],
        facts["tags"],
        facts["shortcodes"],
        taken={text for text, owner in labels.items() if owner != hexcode},
    )
    return Record(
        **facts,
        index=index,
        family=family(hexcode),
        captions=captions,
        split="held_out" if family(hexcode) in held_out else "train",
        vocabulary=hexcode in topics,
        topic=topics.get(hexcode),
    )


def _topics(emoji: Sequence[Mapping[str, Any]], held_out: set[str]) -> dict[str, str]:
    """Hexcode -> topic of the vocabulary: the first picture of each family that belongs to one."""
    topics: dict[str, str] = {}
    used = set(held_out)
    for facts in emoji:
        topic = _topic(facts)
        if topic is not None and family(facts["hexcode"]) not in used:
            used.add(family(facts["hexcode"]))
            topics[facts["hexcode"]] = topic
    return topics


def _topic(facts: Mapping[str, Any]) -> str | None:
    if set(facts["hexcode"].split("-")) & SKIN_TONES:
        return None
    return topic_of(facts["label"], facts["subgroup"])


def _decode(hexcode: str, data: bytes) -> np.ndarray:
    """One picture as RGBA [256, 256, 4]."""
    try:
        image = Image.open(io.BytesIO(data), formats=["WEBP", "PNG"])
        if max(image.size) > 2 * SIZE:
            raise DataError(f"the picture of {hexcode} is {image.size}, expected {SIZE} x {SIZE}")
        return np.asarray(_fitted(image.convert("RGBA")))
    except OSError as error:
        raise DataError(f"the picture of {hexcode} cannot be decoded: {error}") from error


def _fitted(image: Image.Image) -> Image.Image:
    """The picture on a square of 256; a few of the originals are eight rows too tall."""
    if image.size == (SIZE, SIZE):
        return image
    scale = SIZE / max(image.size)
    width, height = (round(side * scale) for side in image.size)
    small = image.convert("RGBa").resize((width, height), Image.Resampling.LANCZOS).convert("RGBA")
    square = Image.new("RGBA", (SIZE, SIZE))
    square.paste(small, ((SIZE - width) // 2, (SIZE - height) // 2))
    return square


def _manifest(folder: Path, records: Sequence[Record], *, pictures_given: int) -> dict[str, Any]:
    packages = (fetch.PICTURES, fetch.CAPTIONS, fetch.KEYWORDS)
    topics: dict[str, int] = {}
    for record in records:
        if record.topic is not None:
            topics[record.topic] = topics.get(record.topic, 0) + 1
    labels = {record.label for record in records if record.vocabulary}
    return {
        "version": VERSION,
        "packages": {package.name: package.version for package in packages},
        "sha256": {name: digest(folder / name) for name in FILES},
        "split": "the 64 families with the smallest SHA-256 of their id, well-known ones excepted",
        "counts": {
            "pictures_given": pictures_given,
            "pictures": len(records),
            "families": len({record.family for record in records}),
            "held_out_families": len({r.family for r in records if r.split == "held_out"}),
            "held_out_pictures": sum(record.split == "held_out" for record in records),
            "vocabulary": len(labels),
            "captions": sum(len(record.captions) for record in records),
            "held_out_captions": sum(record.held_out_caption is not None for record in records),
            "vocabulary_by_topic": topics,
        },
        "missing_well_known": sorted(set(WELL_KNOWN) - labels),
    }


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
