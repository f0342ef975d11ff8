"""The prepared emoji folder: pictures.npy, records.jsonl and manifest.json.

pictures.npy   uint8 [K, 256, 256, 4], RGBA, memory-mapped
records.jsonl  one record per picture, in the same order
languages.json labels and tags of the vocabulary in more languages, and its characters
manifest.json  package versions, digests and counts
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from opensana.datasets.emoji.captions import Caption
from opensana.datasets.emoji.vocabulary import SKIN_TONES
from opensana.errors import DataError

VERSION = 3
LANGUAGES_FILE = "languages.json"
Languages = dict[str, dict[str, list[str]]]
"""Language -> hexcode -> label and tags; "emoji" has the character, in one spelling or two."""
Split = Literal["train", "held_out"]


@dataclass(frozen=True)
class Record:
    """What is known of one picture."""

    index: int
    hexcode: str
    label: str
    tags: tuple[str, ...]
    keywords: tuple[str, ...]
    shortcodes: dict[str, tuple[str, ...]]
    group: str
    subgroup: str
    family: str
    captions: tuple[Caption, ...]
    split: Split
    vocabulary: bool
    topic: str | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Record":
        shortcodes = {vendor: tuple(codes) for vendor, codes in values["shortcodes"].items()}
        captions = tuple(Caption(**caption) for caption in values["captions"])
        listed = {name: tuple(values[name]) for name in ("tags", "keywords")}
        return cls(**{**values, **listed, "shortcodes": shortcodes, "captions": captions})

    @property
    def training_captions(self) -> tuple[Caption, ...]:
        return tuple(caption for caption in self.captions if not caption.held_out)

    @property
    def held_out_caption(self) -> Caption | None:
        return next((caption for caption in self.captions if caption.held_out), None)


@dataclass(frozen=True)
class EmojiData:
    """The prepared folder, opened: pictures stay on disk until they are indexed."""

    folder: Path
    pictures: np.ndarray
    records: tuple[Record, ...]
    manifest: dict[str, Any]

    @classmethod
    def open(cls, folder: str | Path) -> "EmojiData":
        folder = Path(folder)
        if not (folder / "manifest.json").exists():
            raise DataError(
                f"{folder} is not a prepared emoji folder; "
                f"make it with: python recipes/emoji/prepare.py --to {folder}"
            )
        manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
        if manifest.get("version") != VERSION:
            raise DataError(
                f"{folder} has version {manifest.get('version')}, expected {VERSION}; "
                f"make it anew with: python recipes/emoji/prepare.py --to {folder}"
            )
        pictures = np.load(folder / "pictures.npy", mmap_mode="r")
        with (folder / "records.jsonl").open(encoding="utf-8") as file:
            records = tuple(Record.from_dict(json.loads(line)) for line in file)
        if len(records) != len(pictures):
            raise DataError(f"{folder}: {len(pictures)} pictures but {len(records)} records")
        return cls(folder, pictures, records, manifest)

    def split(self, name: Split) -> list[Record]:
        return [record for record in self.records if record.split == name]

    @cached_property
    def vocabulary(self) -> list[Record]:
        return [record for record in self.records if record.vocabulary]

    @cached_property
    def plain(self) -> list[Record]:
        """All but the skin tones, which no caption tells apart well."""
        tones = [any(tone in record.hexcode for tone in SKIN_TONES) for record in self.records]
        return [record for record, tone in zip(self.records, tones, strict=True) if not tone]

    @cached_property
    def languages(self) -> Languages:
        """Labels and tags in more languages, and emoji characters."""
        return json.loads((self.folder / LANGUAGES_FILE).read_text("utf-8"))

    def find(self, label: str) -> Record:
        for record in self.records:
            if record.label == label:
                return record
        raise DataError(f"no emoji is labelled {label!r}")
