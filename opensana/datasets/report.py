"""Statistics of a data set: `opensana data inspect`."""

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
# Upper bounds of height / width, as in the aspect-ratio buckets.
SHAPES = ((0.55, "wide"), (0.9, "landscape"), (1.1, "square"), (1.8, "portrait"))
TALL = "tall"
KINDS_SHOWN = 5
NAMES_SHOWN = 3


def not_read(source: Indexed) -> list[str]:
    """A line about files of which nothing was read, and one about warnings.

    Every command prints them, so that no caption is lost silently.
    """
    present = source.files_read + len(source.not_read)
    files = f"{len(source.not_read):,} of {present:,} files not read"
    remarks = f"{len(source.warnings):,} remark{'s' if source.warnings[1:] else ''}"
    found = ((files, source.not_read), (remarks, source.warnings))
    return [f"{source.where}: {name}: {_named(some)}" for name, some in found if some]


def _named(entries: Iterable[Reject]) -> str:
    """Each kind of reason with its count and first names: 2 x is hidden ('.a', '.b')."""
    by_kind: dict[str, list[Reject]] = defaultdict(list)
    for entry in entries:
        by_kind[_kind(entry.reason)].append(entry)
    kinds = sorted(by_kind.values(), key=len, reverse=True)
    shown: list[str] = []
    for some in kinds[:KINDS_SHOWN]:
        names = [repr(entry.path) for entry in some[:NAMES_SHOWN]]
        names += ["..."] if len(some) > NAMES_SHOWN else []
        count = f"{len(some):,} x " if some[1:] else ""
        shown.append(f"{count}{some[0].reason} ({', '.join(names)})")
    more = f"; {len(kinds) - KINDS_SHOWN} more kinds" if len(kinds) > KINDS_SHOWN else ""
    return "; ".join(shown) + more


def inspect(source: Indexed, *, full: bool = False) -> tuple[dict[str, Any], list[Reject]]:
    """The figures of a source, nested by name, and all rejects.

    With `full` every picture is decoded, which also finds damage after the header.
    """
    good, rejects = _usable(source, full)
    captions = [caption for record in good for caption in record.captions]
    per_picture = Counter(len(record.captions) for record in good)
    names = _side_names()
    sides = Counter(
        names[sum(min(record.width, record.height) >= low for low in SIDES)] for record in good
    )
    ratios = [record.height / record.width for record in good]
    shapes = Counter(next((n for limit, n in SHAPES if ratio < limit), TALL) for ratio in ratios)
    figures = {
        "path": source.where,
        "pictures": len(good),
        "checked": "every pixel" if full else "headers; --full decodes the pictures",
        "refused": len(rejects),
        "reasons": _counted(_kind(reject.reason) for reject in rejects),
        "files read": source.files_read or None,
        "files not read": _counted(reject.reason for reject in source.not_read),
        "remarks": _counted(_kind(warning.reason) for warning in source.warnings),
        "width": _spread([record.width for record in good]),
        "height": _spread([record.height for record in good]),
        "shorter side": _in_order(sides, names),
        "shape": _in_order(shapes, [*(name for _, name in SHAPES), TALL]),
        "captions": len(captions),
        "captions per picture": {str(count): per_picture[count] for count in sorted(per_picture)},
        "captioners": _captioners(good),
        "facts": dict(Counter(name for record in good for name in record.measurements)),
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
    """By captioner: captions, pictures, mean length in characters, mean score."""
    by_name: dict[str, list[Caption]] = defaultdict(list)
    pictures = Counter[str]()
    for record in records:
        pictures.update({caption.captioner for caption in record.captions})
        for caption in record.captions:
            by_name[caption.captioner].append(caption)
    found: dict[str, dict[str, Any]] = {}
    for name, captions in sorted(by_name.items()):
        scores = [caption.score for caption in captions if caption.score is not None]
        found[name] = {
            "captions": len(captions),
            "pictures": pictures[name],
            "characters": round(fmean(len(caption.text) for caption in captions)),
            "score": round(fmean(scores), 2) if scores else None,
        }
    return found


def _spread(values: Sequence[int]) -> dict[str, int]:
    if not values:
        return {}
    return {"least": min(values), "median": round(median(values)), "most": max(values)}


def _kind(reason: str) -> str:
    """A reason without the numbers, names and details of the sample."""
    general = re.sub(r" \(.*\)|'.*'", "", reason)
    return re.sub(r"\d[\d,.]*", "N", general)


def _counted(names: Iterable[str]) -> dict[str, int]:
    return dict(Counter(names).most_common(20))


def _side_names() -> list[str]:
    between = [f"{low} to {high - 1}" for low, high in pairwise(SIDES)]
    return [f"below {SIDES[0]}", *between, f"{SIDES[-1]} and more"]


def _in_order(counts: Counter[str], names: Iterable[str]) -> dict[str, int]:
    return {name: counts[name] for name in names if counts[name]}
