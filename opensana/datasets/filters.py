"""Filters on samples: size, aspect ratio, sharpness, near-duplicates."""

from dataclasses import dataclass
from math import inf

from opensana.datasets.record import Record
from opensana.errors import ConfigError, DataError

SHARPNESS = "sharpness"


@dataclass(frozen=True)
class Filter:
    """`min_side` in pixels, `max_aspect` the longer side over the shorter one.

    `min_sharpness` bounds the measurement of that name; `repeats` are the keys of near-duplicates
    to leave out.
    """

    min_side: int = 0
    max_aspect: float = inf
    min_sharpness: float | None = None
    repeats: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if not self.max_aspect >= 1:
            raise ConfigError(f"max_aspect must be 1 or more, got {self.max_aspect}")

    def why_not(self, record: Record) -> str | None:
        """Why a sample is left out, or None. DataError if its sharpness was not measured."""
        shorter, longer = sorted((record.width, record.height))
        if shorter < self.min_side:
            return f"its shorter side has {shorter} pixels, fewer than {self.min_side}"
        if longer > self.max_aspect * shorter:
            return f"its sides differ {longer / shorter:.2f} times, more than {self.max_aspect:g}"
        if self.min_sharpness is not None and _sharpness(record) < self.min_sharpness:
            return f"its sharpness is {_sharpness(record):.1f}, less than {self.min_sharpness:g}"
        return "is a near-duplicate of another" if record.key in self.repeats else None


def _sharpness(record: Record) -> float:
    if SHARPNESS not in record.measurements:
        raise DataError(
            f"{record.key!r} has no sharpness; measure it: opensana label PATH --to LABELS --facts"
        )
    return record.measurements[SHARPNESS]
