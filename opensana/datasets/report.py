"""What a data set holds, counted: `opensana data inspect`."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from statistics import fmean, median
from typing import Any

from tqdm import tqdm

from opensana.datasets.record import Caption, Record, Reject
from opensana.datasets.sources.indexed import Indexed
from opensana.errors import DataError
from opensana.pictures.decode import decode

SIDES = (256, 512, 1024, 2048)
# Height over width, as the buckets of training count it.
SHAPES = ((0.55, "wide"), (0.9, "landscape"), (1.1, "square"), (1.8, "portrait"))
TALL = "tall"
KINDS_SHOWN = 5
NAMES_SHOWN = 3


def not_read(source: Indexed) -> list[str]:
    """A line that counts and names the files that nothing was read of, one that does the remarks.

    The same for every command, so that no caption is lost unsaid.
    """
    present = source.files_read + len(source.not_read)
    files = f"{len(source.not_read):,} of {present:,} files not read"
    remarks = f"{len(source.notes):,} remark{'s' if source.notes[1:] else ''}"
    found = ((files, source.not_read), (remarks, source.notes))
    return [f"{source.where}: {name}: {_named(some)}" for name, some in found if some]


def _named(entries: Iterable[Reject]) -> str:
    """Each kind of reason with its first names, and its count: 2 x is hidden ('.a', '.b')."""
    by_kind: dict[str, list[Reject]] = defaultdict(list)
    for entry in entries:
        by_kind[_kind(entry.reason)].append(entry)
    kinds = sorted(by_kind.values(), key=len, reverse=True)
    counts = (f"{len(some):,} x " if some[1:] else "" for some in kinds)
    told = (f"{some[0].reason} ({_some(some)})" for some in kinds[:KINDS_SHOWN])
    shown = [f"{count}{reason}" for count, reason in zip(counts, told, strict=False)]
    more = f"; {len(kinds) - KINDS_SHOWN} more kinds" if len(kinds) > KINDS_SHOWN else ""
    return "; ".join(shown) + more


def _some(entries: Sequence[Reject]) -> str:
    shown = ", ".join(repr(entry.path) for entry in entries[:NAMES_SHOWN])
    return f"{shown}, ..." if len(entries) > NAMES_SHOWN else shown


def inspect(source: Indexed, *, full: bool = False) -> tuple[dict[str, Any], list[Reject]]:
    """The figures of a source, nested by name, and everything that it refused.

    With `full` every picture is decoded, so that damage behind the header is found as well.
    """
    good, rejects = _usable(source, full)
    captions = [caption for record in good for caption in record.captions]
    figures = {
        "path": source.where,
        "pictures": len(good),
        "checked": "every pixel" if full else "headers; --full decodes the pictures",
        "refused": len(rejects),
        "reasons": _counted(_kind(reject.reason) for reject in rejects),
        "files read": source.files_read or None,
        "files not read": _counted(reject.reason for reject in source.not_read),
        "remarks": _counted(_kind(note.reason) for note in source.notes),
        "width": _spread([record.width for record in good]),
        "height": _spread([record.height for record in good]),
        "shorter side": _in_order(Counter(_side(record) for record in good), _side_names()),
        "shape": _in_order(Counter(_shape(r) for r in good), [*(n for _, n in SHAPES), TALL]),
        "captions": len(captions),
        "captions per picture": _numbered(Counter(len(record.captions) for record in good)),
        "captioners": _captioners(good),
        "facts": dict(Counter(name for record in good for name in record.facts)),
    }
    return figures, rejects


def _usable(source: Indexed, full: bool) -> tuple[list[Record], list[Reject]]:
    rejects = list(source.rejects)
    if not full:
        return [source.record(index) for index in range(len(source))], rejects
    good: list[Record] = []
    for index in tqdm(range(len(source)), unit="picture", disable=None):
        record = source.record(index)
        try:
            decode(source.picture(index), limits=source.limits)
            good.append(record)
        except DataError as error:
            rejects.append(Reject(source.paths[index], str(error)))
    return good, rejects


def _captioners(records: Iterable[Record]) -> dict[str, dict[str, Any]]:
    """For each captioner: captions, pictures, mean length in characters, mean score."""
    by_name: dict[str, list[Caption]] = defaultdict(list)
    pictures = Counter[str]()
    for record in records:
        pictures.update({caption.captioner for caption in record.captions})
        for caption in record.captions:
            by_name[caption.captioner].append(caption)
    return {
        name: {
            "captions": len(captions),
            "pictures": pictures[name],
            "characters": round(fmean(len(caption.text) for caption in captions)),
            "score": _mean([c.score for c in captions if c.score is not None]),
        }
        for name, captions in sorted(by_name.items())
    }


def _mean(values: Sequence[float]) -> float | None:
    return round(fmean(values), 2) if values else None


def _spread(values: Sequence[int]) -> dict[str, int]:
    if not values:
        return {}
    return {"least": min(values), "median": round(median(values)), "most": max(values)}


def _kind(reason: str) -> str:
    """A reason without the numbers, names and details that differ from sample to sample."""
    general = re.sub(r" \(.*\)|'.*'", "", reason)
    return re.sub(r"\d[\d,.]*", "N", general)


def _counted(names: Iterable[str]) -> dict[str, int]:
    return dict(Counter(names).most_common(20))


def _side_names() -> list[str]:
    between = [f"{low} to {high - 1}" for low, high in pairwise(SIDES)]
    return [f"below {SIDES[0]}", *between, f"{SIDES[-1]} and more"]


def _side(record: Record) -> str:
    side = min(record.width, record.height)
    return _side_names()[sum(side >= low for low in SIDES)]


def _shape(record: Record) -> str:
    ratio = record.height / record.width
    return next((name for limit, name in SHAPES if ratio < limit), TALL)


def _in_order(counts: Counter[str], names: Iterable[str]) -> dict[str, int]:
    return {name: counts[name] for name in names if counts[name]}


def _numbered(counts: Counter[int]) -> dict[str, int]:
    return {str(number): counts[number] for number in sorted(counts)}
