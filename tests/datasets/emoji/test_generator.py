import re
from random import Random

import pytest

from opensana.datasets.emoji.generator import TASKS, Vocabulary, draw_scene, training_scenes
from opensana.datasets.emoji.held_out import (
    held_out_parts,
    is_held_out_colour,
    is_held_out_number,
)
from opensana.datasets.emoji.scenes import Group
from tests.datasets.emoji.vocabularies import LABELS, small_vocabulary

VOCABULARY = Vocabulary(small_vocabulary())
RECORDS = VOCABULARY.data.records
SCENES = list(training_scenes(VOCABULARY, dict.fromkeys(TASKS, 150), seed=1))


def kind(label: str) -> int:
    return LABELS.index(label)


def test_no_training_scene_has_a_held_out_combination() -> None:
    for scene, _ in SCENES:
        groups = [(RECORDS[g.kind], g.number, g.colour) for g in scene.groups]
        assert not held_out_parts(groups), scene
        for record, number, colour in groups:
            assert not is_held_out_number(record, number)
            assert colour is None or not is_held_out_colour(record, colour)


def test_no_training_caption_tells_a_held_out_combination() -> None:
    """Asked of the words, not of the scene that they were made of."""
    words = {2: "two|2|a couple of|a pair of", 3: "three|3", 4: "four|4", 5: "five|5"}
    texts = [text for _, text in SCENES]
    for record in RECORDS:
        names = VOCABULARY.names[record.index] + VOCABULARY.bare[record.index]
        many = "|".join(re.escape(name.many) for name in names if name.many)
        for number, said in words.items():
            if many and is_held_out_number(record, number):
                # Colours and sizes may stand in between.
                told = re.compile(rf"\b(?:{said}) (?:[\w-]+ ){{0,3}}?(?:{many})\b")
                assert not any(_tells(told, text, words) for text in texts), (record, number)
        one = "|".join(re.escape(name.one) for name in VOCABULARY.bare[record.index])
        for colour in VOCABULARY.colours(record.index):
            if one and is_held_out_colour(record, colour):
                told = re.compile(rf"\b{colour}(?:-coloured| colored)? (?:{one})\b")
                assert not any(told.search(text) for text in texts), (record, colour)


def _tells(told: re.Pattern[str], text: str, numbers: dict[int, str]) -> bool:
    found = told.search(text)
    others = "|".join(numbers.values())
    inner = found and found[0].split(" ", 1)[1].removeprefix("couple of ").removeprefix("pair of ")
    return bool(found) and not re.search(rf"\b(?:{others}|a|an|one|and|with)\b", str(inner))


def test_held_out_captions_are_in_no_scene() -> None:
    assert not any("secret" in text for _, text in SCENES)


@pytest.mark.parametrize("part", ["number", "colour", "pair"])
def test_a_question_has_the_held_out_part_that_it_asks_about_alone(part: str) -> None:
    task = {"number": "counted", "colour": "coloured", "pair": "two"}[part]
    for seed in range(20):
        scene = draw_scene(VOCABULARY, task, Random(seed), held_out=frozenset({part}))
        assert VOCABULARY.held_out(scene) == {part}


def test_the_same_scenes_each_time_and_more_go_on_from_them() -> None:
    again = list(training_scenes(VOCABULARY, {"two": 5, "several": 5}, seed=1))
    assert all(scene in SCENES for scene in again)
    more = list(training_scenes(VOCABULARY, {"two": 5}, seed=1, skip=3))
    assert more[:2] == list(training_scenes(VOCABULARY, {"two": 5}, seed=1))[3:]
    other = list(training_scenes(VOCABULARY, {"two": 5}, seed=2))
    assert other != list(training_scenes(VOCABULARY, {"two": 5}, seed=1))


def test_every_task_draws_what_its_name_says() -> None:
    for scene, _ in training_scenes(VOCABULARY, {"counted": 40}, seed=3):
        assert len(scene.groups) == 1 and scene.total > 1
    for scene, _ in training_scenes(VOCABULARY, {"attributed": 40}, seed=3):
        assert scene.pair and all(group.colour for group in scene.groups)
    for scene, _ in training_scenes(VOCABULARY, {"several": 40}, seed=3):
        assert scene.total >= 3
    for scene, _ in training_scenes(VOCABULARY, {"positioned": 40}, seed=3):
        assert scene.place is not None


def test_what_a_name_says_is_not_said_twice() -> None:
    assert "red" not in VOCABULARY.colours(kind("red apple"))
    assert [name.one for name in VOCABULARY.bare[kind("red apple")]] == ["apple"]
    assert VOCABULARY.name(Group(kind("red apple"), colour="green"), Random(0)).one == "apple"
    # A black cat without black is the cat face.
    assert kind("black cat") not in VOCABULARY.colourable
    assert kind("bus") not in VOCABULARY.colourable  # of two colours


def test_mass_nouns_and_plurals_are_not_counted() -> None:
    assert kind("grapes") not in VOCABULARY.counted
    groups = [group for scene, _ in SCENES for group in scene.groups if group.number > 1]
    assert all(group.kind != kind("grapes") for group in groups)
