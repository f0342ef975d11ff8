"""Read labels: the captions, CLIP scores and measurements of pictures, by key."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from opensana.datasets.record import Caption, Record, Reject, Source
from opensana.datasets.sources.beside import one_spelling
from opensana.errors import DataError
from opensana.label.journal import all_lines, read_caption_sources
from opensana.label.measurements import duplicate_groups

MEASURED = ("sharpness",)
"""The measurements that are numbers."""

Score = tuple[str, float]
"""The scorer and its value."""


@dataclass(frozen=True)
class Labels:
    """All of a folder of labels, in memory: about a kilobyte per caption.

    A maker is the id of a caption source.
    """

    sources: Mapping[str, Mapping[str, Any]]
    texts: Mapping[str, Mapping[str, str]]
    """Key -> maker -> caption."""
    scores: Mapping[tuple[str, str], Score]
    """(Key, maker) -> the last score."""
    measured: Mapping[str, Mapping[str, Any]]
    """Key -> its line of measurements."""
    failed: Mapping[tuple[str, str], str]
    """(Key, maker) -> why it failed."""

    @classmethod
    def open(cls, folder: str | Path, *, scorer: str | None = None) -> "Labels":
        """Read a folder, also while it is being written; `scorer` selects one of several."""
        folder = Path(folder)
        if not any((folder / f"{kind}.jsonl").exists() for kind in ("captions", "facts")):
            raise DataError(f"{folder} holds no labels; make them with: opensana label")
        texts: defaultdict[str, dict[str, str]] = defaultdict(dict)
        for line in all_lines(folder, "captions"):
            texts[line["key"]][line["maker"]] = line["text"]
        scores = {
            (line["key"], line["maker"]): (line["scorer"], float(line["score"]))
            for line in all_lines(folder, "scores")
            if scorer in (None, line["scorer"])
        }
        measured = {line["key"]: line for line in all_lines(folder, "facts")}
        # The rejects that no later line has made void.
        done = {(line["key"], line["scorer"]) for line in all_lines(folder, "scores")}
        done |= {(key, "facts") for key in measured}
        failed = {
            (line["key"], line["maker"]): line["reason"]
            for line in all_lines(folder, "rejects")
            if line["maker"] not in texts.get(line["key"], ())
            and (line["key"], line["maker"]) not in done
        }
        return cls(read_caption_sources(folder), texts, scores, measured, failed)

    def captions(self, key: str) -> tuple[Caption, ...]:
        """The captions that were written for a picture, with their sources and scores."""
        texts = self.texts.get(key, {})
        for maker in texts:
            if maker not in self.sources:
                raise DataError(f"makers.json does not know {maker!r}, which wrote a caption")
        return tuple(
            self._scored(Caption(text, **self.sources[maker]), key, maker)
            for maker, text in texts.items()
        )

    def measurements(self, key: str) -> dict[str, float]:
        """The measurements of a picture, by name."""
        line = self.measured.get(key, {})
        return {name: float(line[name]) for name in MEASURED if name in line}

    def missing(self, keys: Iterable[str]) -> list[str]:
        """The keys without any label."""
        known = {*self.texts, *self.measured, *(key for key, _ in self.scores)}
        return [key for key in keys if self._spelt(key) not in known]

    def repeats(self) -> frozenset[str]:
        """The keys that are near-duplicates of an earlier one."""
        hashes = {key: int(line["dhash"], 16) for key, line in self.measured.items()}
        return frozenset(key for group in duplicate_groups(hashes) for key in group[1:])

    def join(self, record: Record) -> Record:
        """The record with all captions, their scores and its measurements."""
        key = self._spelt(record.key)
        own = tuple(self._scored(c, key, own_caption_id(c.text)) for c in record.captions)
        return replace(
            record,
            captions=own + self.captions(key),
            measurements={**record.measurements, **self.measurements(key)},
        )

    def _spelt(self, key: str) -> str:
        """A key in the labels' Unicode normalisation; macOS may have changed the picture's name."""
        return key if key.isascii() or key in self.texts else self._keys.get(one_spelling(key), key)

    @cached_property
    def _keys(self) -> dict[str, str]:
        keys = (*(key for key, _ in self.scores), *self.measured, *self.texts)
        return {one_spelling(key): key for key in keys if not key.isascii()}

    def _scored(self, caption: Caption, key: str, maker: str) -> Caption:
        if (key, maker) not in self.scores:
            return caption
        scorer, score = self.scores[key, maker]
        return replace(caption, score=score, scorer=scorer)


@dataclass(frozen=True)
class Labelled:
    """A source whose records have their labels."""

    source: Source
    labels: Labels

    @property
    def rejects(self) -> Sequence[Reject]:
        return self.source.rejects

    def __len__(self) -> int:
        return len(self.source)

    def record(self, index: int) -> Record:
        return self.labels.join(self.source.record(index))

    def picture(self, index: int) -> bytes:
        return self.source.picture(index)


def labelled(source: Source, labels: Labels) -> Source:
    """The source with the labels of its pictures."""
    return Labelled(source, labels)


def own_caption_id(text: str) -> str:
    """The maker of a caption that came with its picture, for its score."""
    return "own-" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
