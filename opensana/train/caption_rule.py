"""Which of a picture's captions a training step reads (paper 3.1).

Several models describe each picture, and CLIP scores each description. A rule turns the scores into
probabilities; they are applied when training, not when caching, so that another rule or temperature
costs nothing.

    softmax   exp(score / temperature), the paper's
    power     score ** (1 / temperature) of the scores above a threshold, the released code's
    uniform   all alike
    best      the highest score

The rules that look at scores leave captions without one aside; where none has a score they take the
first caption, the plain one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from opensana.errors import ConfigError

Rule = Literal["softmax", "power", "uniform", "best"]
LEAST_TEMPERATURE = 0.01  # of the power rule, as released


@dataclass(frozen=True)
class CaptionRule:
    """How captions are drawn; `threshold`, a CLIP score, is the power rule's alone."""

    rule: Rule = "power"
    temperature: float = 0.1
    threshold: float = 25.0

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ConfigError(f"the temperature must be 0 or more, got {self.temperature}")

    def probabilities(self, scores: Sequence[float | None]) -> np.ndarray:
        """The chance [K] of each caption, float64; they sum to one."""
        if self.rule == "uniform":
            return np.full(len(scores), 1 / len(scores))
        known = np.array([np.nan if score is None else score for score in scores], np.float64)
        if np.isnan(known).all():
            return _only(0, len(scores))
        weights = self._weights(known)
        if not weights.any():
            return _only(int(np.nanargmax(known)), len(scores))
        return weights / weights.sum()

    def _weights(self, scores: np.ndarray) -> np.ndarray:
        """Weights [K], the largest of them 1 so that no power overflows; none for `best`."""
        weights = np.zeros(len(scores))
        if self.rule == "softmax" and self.temperature > 0:
            rated = ~np.isnan(scores)
            with np.errstate(over="ignore"):  # at tiny temperatures exp(-inf) is 0, as it is
                gaps = scores[rated] - scores[rated].max()
                weights[rated] = np.exp(gaps / self.temperature)
        elif self.rule == "power":
            passed = np.nan_to_num(scores, nan=-np.inf) >= self.threshold
            passed &= np.nan_to_num(scores, nan=0.0) > 0
            exponent = 1 / max(self.temperature, LEAST_TEMPERATURE)
            largest = scores[passed].max(initial=0.0)
            weights[passed] = (scores[passed] / largest) ** exponent
        return weights


def pick(probabilities: np.ndarray, uniform: float) -> int:
    """The index that a uniform number of [0, 1) falls on; never one of probability 0."""
    index = int(np.searchsorted(np.cumsum(probabilities), uniform, side="right"))
    return min(index, int(np.flatnonzero(probabilities)[-1]))


def _only(index: int, count: int) -> np.ndarray:
    chances = np.zeros(count)
    chances[index] = 1.0
    return chances
