"""Colours that were asked for against those that were drawn.

Also tests `evaluate/emoji/backgrounds.py`.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from PIL import Image

from opensana.datasets.emoji.compose import COLOURS, SIZE, Scene, compose
from opensana.datasets.emoji.dataset import EmojiData
from opensana.datasets.emoji.lab import to_lab
from opensana.datasets.emoji.prompts import prompts_of, scenes_of
from opensana.evaluate.emoji.backgrounds import whole
from opensana.evaluate.emoji.colours import (
    ColourQuestion,
    Colours,
    ask_colours,
    colour_questions,
    frame_distances,
)
from opensana.evaluate.emoji.nearest import references

Paint = Callable[[ColourQuestion], np.ndarray]


def judged(data: EmojiData, paint: Paint) -> Colours:
    questions = colour_questions(data, 24)
    by_prompt = {question.prompt: question for question in questions}

    def draw(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        return [Image.fromarray(paint(by_prompt[prompt])) for prompt in prompts]

    return ask_colours(draw, questions, whole(data, data.vocabulary))


def truth(data: EmojiData, question: ColourQuestion, background: str | None = None) -> np.ndarray:
    ground = background or question.background
    return compose(Scene((question.record.index,), ground), data.pictures)


@pytest.mark.parametrize(
    ("colour", "lab"),
    [
        ((255, 255, 255), (100, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((255, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 255, 0), (87.73, -86.18, 83.18)),
        ((0, 0, 255), (32.30, 79.19, -107.86)),
        ((8, 8, 8), (2.19, 0, 0)),
    ],
)
def test_lab_of_known_colours(colour: tuple[int, ...], lab: tuple[float, ...]) -> None:
    np.testing.assert_allclose(to_lab(np.array(colour)), lab, atol=0.05)


def test_questions_are_worded_as_in_training(crowd: EmojiData) -> None:
    questions = colour_questions(crowd, 24)
    assert questions == colour_questions(crowd, 24)
    for question in questions:
        (scene,) = (
            scene
            for scene in scenes_of(question.record, backgrounds=6)
            if scene.background == question.background
        )
        assert question.prompt == prompts_of(question.record, scene)[0].text
    everything = colour_questions(crowd, 1000)
    prompts = {question.prompt for question in everything}
    assert len(prompts) == 15 * 6, "an emoji that reaches into the frame is not asked for"
    assert {question.background for question in everything} == set(COLOURS) - {"white"}


def test_the_true_scene_is_right(crowd: EmojiData) -> None:
    figures = judged(crowd, lambda question: truth(crowd, question))
    assert (figures.emoji.pictures, figures.emoji.top1) == (24, 1)
    assert figures.emoji.error < 1e-5
    assert (figures.just_noticeable, figures.close, figures.pixels_just_noticeable) == (1, 1, 1)
    assert figures.median_distance == 0


def test_another_ground_is_wrong(crowd: EmojiData) -> None:
    figures = judged(crowd, lambda question: truth(crowd, question, "white"))
    assert figures.emoji.top1 == 1
    assert (figures.just_noticeable, figures.close, figures.pixels_just_noticeable) == (0, 0, 0)
    assert figures.median_distance > 10


def test_another_emoji_is_wrong(crowd: EmojiData) -> None:
    def paint(question: ColourQuestion) -> np.ndarray:
        other = (question.record.index + 1) % 15
        return compose(Scene((other,), question.background), crowd.pictures)

    figures = judged(crowd, paint)
    assert (figures.just_noticeable, figures.emoji.top1) == (1, 0)


def test_an_uneven_ground_shows_in_its_pixels() -> None:
    picture = np.tile(np.array(COLOURS["gray"], dtype=np.uint8), (SIZE, SIZE, 1))
    picture[:, : SIZE // 2] += 20
    picture[:, SIZE // 2 :] -= 20
    mean, own = frame_distances(Image.fromarray(picture), "gray")
    assert mean < 0.1
    assert own.min() > 5


def test_only_the_frame_counts() -> None:
    lighter = np.array(COLOURS["gray"]) + 6
    picture = np.tile(lighter.astype(np.uint8), (SIZE, SIZE, 1))
    picture[4:-4, 4:-4] = 0
    mean, _ = frame_distances(Image.fromarray(picture), "gray")
    assert 2.2 < mean < 2.5


@pytest.mark.parametrize("background", ["brown", "light green", "white", "black"])
def test_references_on_a_colour_are_those_composed_on_it(crowd: EmojiData, background: str) -> None:
    crowd.pictures[:8, ..., 3] //= 2
    wanted = references(crowd, crowd.vocabulary, background)
    found = whole(crowd, crowd.vocabulary).on(background)
    np.testing.assert_allclose(found.pixels, wanted.pixels, atol=1.1 / 255)
