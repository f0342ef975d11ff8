"""The questions about composed scenes, and that true scenes are judged right."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from PIL import Image

from opensana.datasets.emoji.generator import Vocabulary
from opensana.datasets.emoji.scenes import Composition
from opensana.evaluate.emoji.detect import Detector
from opensana.evaluate.emoji.questions import QUESTIONS, ask_composed, questions, right
from opensana.evaluate.emoji.reconstruction import round_trip
from opensana.models.find import find_autoencoder
from opensana.models.load import load_autoencoder
from tests.datasets.emoji.vocabularies import small_vocabulary

VOCABULARY = Vocabulary(small_vocabulary())
DETECTOR = Detector(VOCABULARY)
HELD_OUT = {
    "two_objects": {"pair"},
    "counting": {"number"},
    "colours": {"colour"},
    "colour_attribution": {"pair"},
}


def drawn(scene: Composition) -> Image.Image:
    return Image.fromarray(VOCABULARY.painter.draw(scene))


@pytest.mark.parametrize("name", QUESTIONS)
def test_questions_are_the_same_each_time_and_held_out(name: str) -> None:
    asked = questions(VOCABULARY, name, 8)
    assert asked == questions(VOCABULARY, name, 12)[:8]
    for number, one in enumerate(asked):
        held_out = VOCABULARY.held_out(one.scene)
        if name == "position":
            assert held_out == ({"pair"} if number % 2 == 0 else set())
        else:
            assert held_out == HELD_OUT[name]


def test_numbers_come_in_turn() -> None:
    asked = questions(VOCABULARY, "counting", 8)
    assert [one.scene.total for one in asked] == [2, 3, 4, 5, 2, 3, 4, 5]


def test_true_scenes_are_right() -> None:
    scenes = {one.prompt: one.scene for name in QUESTIONS for one in questions(VOCABULARY, name, 4)}

    def draw(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        return [drawn(scenes[prompt]) for prompt in prompts]

    shares, answers = ask_composed(draw, VOCABULARY, 4)
    assert [getattr(shares, name) for name in QUESTIONS] == [1.0] * 5
    assert shares.pictures == 4
    assert {name: len(found) for name, found in answers.items()} == dict.fromkeys(QUESTIONS, 4)


def test_true_scenes_are_right_after_the_autoencoder() -> None:
    model = load_autoencoder(find_autoencoder("emoji-256")).float()
    verdicts = []
    for name in QUESTIONS:
        asked = questions(VOCABULARY, name, 4)
        given = round_trip(model, [VOCABULARY.painter.draw(one.scene) for one in asked])
        pairs = zip(asked, given, strict=True)
        verdicts += [right(DETECTOR, name, one.scene, picture) for one, picture in pairs]
    assert sum(verdicts) >= 0.98 * len(verdicts)


@pytest.mark.parametrize("name", QUESTIONS)
def test_wrong_scenes_are_wrong(name: str) -> None:
    for one in questions(VOCABULARY, name, 4):
        first, *others = one.scene.groups
        if name == "counting":
            wrong = Composition((replace(first, number=first.number % 4 + 2),))
            assert wrong.total != one.scene.total
        elif name == "two_objects":
            wrong = Composition((first,))
        elif name == "colours":
            colour = next(c for c in ("red", "blue") if c != first.colour)
            wrong = Composition((replace(first, colour=colour),))
        elif name == "colour_attribution":
            swapped = [
                replace(first, colour=others[0].colour),
                replace(others[0], colour=first.colour),
            ]
            wrong = replace(one.scene, groups=tuple(swapped))
        elif one.scene.place is not None:
            other = "right" if one.scene.place != "right" else "left"
            wrong = replace(one.scene, place=other)
        else:
            wrong = replace(one.scene, groups=(others[0], first))
        assert not right(DETECTOR, name, one.scene, drawn(wrong)), one.prompt
