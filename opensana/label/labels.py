"""Labels as training reads them: the captions, scores and facts of a picture under its key."""

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
from opensana.label.journal import all_lines, read_makers
from opensana.label.measurements import duplicate_groups

MEASURED = ("sharpness",)
"""The facts that are numbers."""

Score = tuple[str, float]
"""Who gave it, and the value."""


@dataclass(frozen=True)
class Labels:
    """Everything that a folder of labels holds, in memory: about a kilobyte a caption."""

    makers: Mapping[str, Mapping[str, Any]]
    texts: Mapping[str, Mapping[str, str]]
    """Key -> maker -> caption."""
    scores: Mapping[tuple[str, str], Score]
    """(Key, maker) -> the score given last."""
    measured: Mapping[str, Mapping[str, Any]]
    """Key -> the line of its facts."""
    failed: Mapping[tuple[str, str], str]
    """(Key, maker) -> why there is nothing."""

    @classmethod
    def open(cls, folder: str | Path, *, scorer: str | None = None) -> "Labels":
        """Read a folder, also while it is being written; `scorer` picks one of several."""
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
        facts = {line["key"]: line for line in all_lines(folder, "facts")}
        return cls(read_makers(folder), texts, scores, facts, _failed(folder, texts))

    def captions(self, key: str) -> tuple[Caption, ...]:
        """The captions that were made of a picture, with who made them, and their scores."""
        return tuple(
            self._scored(Caption(text, **self._maker(maker)), key, maker)
            for maker, text in self.texts.get(key, {}).items()
        )

    def facts(self, key: str) -> dict[str, float]:
        """The measured numbers of a picture under their names."""
        line = self.measured.get(key, {})
        return {name: float(line[name]) for name in MEASURED if name in line}

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Those of the keys under which nothing is known."""
        known = {*self.texts, *self.measured, *(key for key, _ in self.scores)}
        return [key for key in keys if self._spelt(key) not in known]

    def repeats(self) -> frozenset[str]:
        """The keys that are near-duplicates of an earlier one."""
        hashes = {key: int(line["dhash"], 16) for key, line in self.measured.items()}
        return frozenset(key for group in duplicate_groups(hashes) for key in group[1:])

    def join(self, record: Record) -> Record:
        """The record with its own captions, scored, and those that were made of it."""
        key = self._spelt(record.key)
        own = tuple(self._scored(c, key, own_maker(c.text)) for c in record.captions)
        return replace(
            record,
            captions=own + self.captions(key),
            facts={**record.facts, **self.facts(key)},
        )

    def _spelt(self, key: str) -> str:
        """A key as the labels spell its accents; a Mac may have changed the picture's name."""
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

    def _maker(self, maker: str) -> Mapping[str, Any]:
        if maker not in self.makers:
            raise DataError(f"makers.json does not know {maker!r}, which wrote a caption")
        return self.makers[maker]


@dataclass(frozen=True)
class Labelled:
    """A source whose records carry their labels."""

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
    """The source with the labels of its pictures; those without any stay as they are."""
    return Labelled(source, labels)


def own_maker(text: str) -> str:
    """The maker under which a source's own caption is scored."""
    return "own-" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def _failed(folder: Path, texts: Mapping[str, Mapping[str, str]]) -> dict[tuple[str, str], str]:
    """The rejects that nothing has taken back."""
    done = {(line["key"], line["scorer"]) for line in all_lines(folder, "scores")}
    done |= {(line["key"], "facts") for line in all_lines(folder, "facts")}
    return {
        (line["key"], line["maker"]): line["reason"]
        for line in all_lines(folder, "rejects")
        if line["maker"] not in texts.get(line["key"], ())
        and (line["key"], line["maker"]) not in done
    }
