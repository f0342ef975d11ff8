from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from PIL import Image

from opensana.datasets.emoji.compose import Scene, compose
from opensana.datasets.emoji.dataset import EmojiData
from opensana.datasets.emoji.held_out import is_held_out_pair
from opensana.evaluate.emoji.backgrounds import halves
from opensana.evaluate.emoji.pairs import PairQuestion, Pairs, ask_pairs, pair_questions

Change = Callable[[Scene], Scene]


def judged(
    data: EmojiData, questions: Sequence[PairQuestion], change: Change, side: int = 256
) -> Pairs:
    by_prompt = {question.prompt: question.scene for question in questions}

    def draw(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        scenes = [change(by_prompt[prompt]) for prompt in prompts]
        images = [Image.fromarray(compose(scene, data.pictures)) for scene in scenes]
        return [image.resize((side, side)) for image in images]

    return ask_pairs(draw, questions, halves(data, data.vocabulary))


def exchanged(scene: Scene) -> Scene:
    return replace(scene, emoji=scene.emoji[::-1])


@pytest.mark.parametrize("held_out", [True, False])
def test_the_questions(crowd: EmojiData, held_out: bool) -> None:
    questions = pair_questions(crowd, 100, held_out=held_out)
    assert questions == pair_questions(crowd, 100, held_out=held_out)
    for question in questions:
        one, other = (crowd.records[index] for index in question.scene.emoji)
        assert is_held_out_pair(one, other) == held_out
        assert question.families == (one.family, other.family)
    relations = ("left of", "right of", "above", "below")
    for relation in relations if not held_out else ():
        assert any(f" {relation} " in question.prompt for question in questions)


@pytest.mark.parametrize("held_out", [True, False])
@pytest.mark.parametrize("side", [256, 128])
def test_the_true_scene_is_right(crowd: EmojiData, held_out: bool, side: int) -> None:
    questions = pair_questions(crowd, 20, held_out=held_out)
    assert {q.scene.position for q in questions} == {"left of", "above"}
    assert any(q.scene.background != "white" for q in questions)
    figures = judged(crowd, questions, lambda scene: scene, side)
    assert figures == Pairs(len(questions), in_order=1.0, there=1.0)


def test_exchanged_emoji_are_there_but_not_in_order(crowd: EmojiData) -> None:
    questions = pair_questions(crowd, 20, held_out=False)
    assert judged(crowd, questions, exchanged) == Pairs(20, in_order=0.0, there=1.0)


def test_one_right_emoji_twice_is_no_pair(crowd: EmojiData) -> None:
    def twice(scene: Scene) -> Scene:
        return replace(scene, emoji=(scene.emoji[0],) * 2)

    questions = pair_questions(crowd, 20, held_out=False)
    assert judged(crowd, questions, twice) == Pairs(20, in_order=0.0, there=0.0)


def test_the_other_relation_is_wrong(crowd: EmojiData) -> None:
    def turned(scene: Scene) -> Scene:
        return replace(scene, position="above" if scene.position == "left of" else "left of")

    assert judged(crowd, pair_questions(crowd, 20, held_out=False), turned).in_order < 0.5


def test_siblings_are_no_pair(crowd: EmojiData) -> None:
    same = tuple(replace(record, family="one") for record in crowd.records)
    assert pair_questions(replace(crowd, records=same), 5, held_out=False) == []
