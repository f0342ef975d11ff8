"""D5: drawn frequencies are the rule's, and a draw depends on seed, epoch and sample alone."""

import numpy as np
import pytest

from opensana.errors import ConfigError
from opensana.train.caption_rule import CaptionRule, Rule, pick
from opensana.train.engine.randomness import numpy_generator

SCORES = (27.0, 24.9, 31.5, 29.0)
DRAWS = 100_000


def formula(rule: Rule, temperature: float, threshold: float) -> list[float]:
    """The rules as they are published, in plain arithmetic."""
    if rule == "softmax":
        weights = [np.exp(score / temperature) for score in SCORES]
    else:
        power = 1 / max(temperature, 0.01)
        weights = [score**power if score >= threshold else 0.0 for score in SCORES]
    return [float(weight / sum(weights)) for weight in weights]


@pytest.fixture(scope="module")
def uniforms() -> list[float]:
    """What training draws for 100,000 samples."""
    return [numpy_generator(3, 1, sample, "caption").random() for sample in range(DRAWS)]


@pytest.mark.parametrize(
    ("rule", "temperature", "threshold"),
    [("power", 0.1, 25.0), ("power", 1.0, 0.0), ("power", 0.5, 28.0), ("softmax", 1.0, 0.0)],
)
def test_frequencies_are_the_rule(uniforms, rule: Rule, temperature: float, threshold: float):
    chances = CaptionRule(rule, temperature, threshold).probabilities(SCORES)
    drawn = np.bincount([pick(chances, u) for u in uniforms], minlength=4) / DRAWS
    np.testing.assert_allclose(drawn, formula(rule, temperature, threshold), atol=0.01)


def test_golden_probabilities():
    power = CaptionRule().probabilities(SCORES)
    np.testing.assert_allclose(power, [0.129618, 0.0, 0.605527, 0.264855], atol=1e-6)
    softmax = CaptionRule("softmax", 2.0).probabilities(SCORES)
    np.testing.assert_allclose(softmax, [0.073768, 0.025814, 0.699894, 0.200523], atol=1e-6)


def test_below_the_threshold_the_best_is_taken():
    assert CaptionRule(threshold=40.0).probabilities(SCORES).tolist() == [0, 0, 1, 0]
    assert CaptionRule(threshold=-5.0).probabilities([-1.0, -3.0]).tolist() == [1, 0]


@pytest.mark.parametrize("rule", ["power", "softmax", "best"])
def test_captions_without_scores(rule: Rule):
    assert CaptionRule(rule).probabilities([None, None]).tolist() == [1, 0], "the plain caption"
    assert CaptionRule(rule).probabilities([None, 26.0]).tolist() == [0, 1]


def test_uniform_and_best():
    assert CaptionRule("uniform").probabilities([None, 30.0, 1.0]).tolist() == [1 / 3] * 3
    assert CaptionRule("best").probabilities(SCORES).tolist() == [0, 0, 1, 0]


@pytest.mark.parametrize("rule", ["power", "softmax"])
@pytest.mark.parametrize("temperature", [0.0, 1e-308, 1e-3, 1.0, 1e308])
@pytest.mark.parametrize("scores", [(1e-30, 1e30), (3e-308, 2e-308), (-5.0, 5.0), (0.0, 0.0)])
def test_extremes_stay_probabilities(rule: Rule, temperature: float, scores: tuple[float, float]):
    chances = CaptionRule(rule, temperature, threshold=0.0).probabilities(scores)
    assert np.isfinite(chances).all() and chances.sum() == pytest.approx(1) and chances.min() >= 0
    if temperature < 1e-2 and max(scores) > 1:
        assert chances.argmax() == np.argmax(scores)


def test_a_cold_softmax_is_the_best():
    assert CaptionRule("softmax", 1e-4).probabilities(SCORES).tolist() == [0, 0, 1, 0]
    assert CaptionRule("softmax", 0.0).probabilities(SCORES).tolist() == [0, 0, 1, 0]


def test_a_caption_of_no_chance_is_never_picked():
    chances = np.array([0.0, 0.7, 0.3 - 1e-12, 0.0])
    assert pick(chances, 0.0) == 1
    assert pick(chances, np.nextafter(1.0, 0.0)) == 2


@pytest.mark.parametrize("temperature", [-1.0, float("nan")])
def test_no_temperature_below_zero(temperature: float):
    with pytest.raises(ConfigError, match="temperature"):
        CaptionRule("softmax", temperature)
