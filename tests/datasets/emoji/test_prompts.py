from dataclasses import replace
from pathlib import Path

import pytest

from opensana.datasets.emoji.dataset import EmojiData, Record
from opensana.datasets.emoji.held_out import is_held_out_pair
from opensana.datasets.emoji.preparation import build
from opensana.datasets.emoji.prompts import (
    KEYWORD_WEIGHT,
    keywords_of,
    pair_scenes,
    prompts_of,
    scenes_of,
)

Members = dict[str, bytes]


@pytest.fixture
def data(tmp_path: Path, picture_members: Members, caption_members: Members) -> EmojiData:
    return build(tmp_path / "emoji", pictures=picture_members, captions=caption_members)


@pytest.fixture
def apple(data: EmojiData) -> Record:
    return data.find("red apple")


def test_the_white_scene_comes_first_and_colours_differ(apple: Record) -> None:
    scenes = scenes_of(apple, backgrounds=5)
    backgrounds = [scene.background for scene in scenes]
    assert backgrounds[0] == "white"
    assert len(set(backgrounds)) == 6
    assert scenes == scenes_of(apple, backgrounds=5)
    assert scenes != scenes_of(replace(apple, hexcode="1F431"), backgrounds=5)


def test_the_label_has_a_fifth_of_the_mass_or_more(apple: Record) -> None:
    for scene in scenes_of(apple, backgrounds=2):
        weights = {prompt.text: prompt.weight for prompt in prompts_of(apple, scene)}
        assert sum(weights.values()) == pytest.approx(1)
        label = sum(w for text, w in weights.items() if "red apple" in text and "," not in text)
        assert label == pytest.approx(0.25 if scene.background == "white" else 0.75)
        assert not any("rosy" in text for text in weights)  # held out
        named = [text for text in weights if f"{scene.background} background" in text]
        assert len(named) == (1 if scene.background == "white" else len(weights))


def test_keywords_stand_for_the_white_scene_alone(apple: Record, data: EmojiData) -> None:
    keywords = keywords_of(data.records)[apple.index]
    white, coloured = scenes_of(apple, backgrounds=1)
    texts = {prompt.text for prompt in prompts_of(apple, white, keywords=keywords)}
    assert {prompt.text for prompt in keywords} <= texts
    others = {prompt.text for prompt in prompts_of(apple, coloured, keywords=keywords)}
    assert others == {prompt.text for prompt in prompts_of(apple, coloured)}


def test_a_keyword_names_no_other_and_weighs_less_if_it_is_shared(
    apple: Record, data: EmojiData
) -> None:
    keywords = keywords_of(data.records)[apple.index]
    weights = {prompt.text: prompt.weight for prompt in keywords}
    # "pet" is a cat's as well as a cat face's; "cat face" is a name, and "rosy" and "fruit" are
    # parts of the held-out "rosy fruit".
    assert weights == {"diet": KEYWORD_WEIGHT, "mac": KEYWORD_WEIGHT, "pet": KEYWORD_WEIGHT / 3}


def many(apple: Record, count: int) -> list[Record]:
    return [replace(apple, index=i, hexcode=f"{i:04X}", label=f"thing {i}") for i in range(count)]


def test_pairs_leave_one_in_ten_out_in_both_orders(apple: Record) -> None:
    records = many(apple, 40)
    known = {record.index: record for record in records}
    held_out = {(a.index, b.index) for a in records for b in records if is_held_out_pair(a, b)}
    assert 0.05 < len(held_out) / len(records) ** 2 < 0.15
    assert {(b, a) for a, b in held_out} == held_out
    scenes = pair_scenes(records, rounds=20)
    assert 20 * 20 * 0.8 < len(scenes) < 20 * 20
    assert not any(is_held_out_pair(*(known[i] for i in scene.emoji)) for scene, _ in scenes)
    assert scenes == pair_scenes(records, rounds=20)
    others = pair_scenes(records, rounds=20, held_out=True)
    assert all(is_held_out_pair(*(known[i] for i in scene.emoji)) for scene, _ in others)
    assert len(scenes) + len(others) == 20 * 20


def test_a_pairs_prompt_says_who_stands_where(apple: Record) -> None:
    opposite = {"left of": "right of", "above": "below"}
    said = set()
    for scene, (prompt,) in pair_scenes(many(apple, 40), rounds=8):
        one, other = (f"a thing {index}" for index in scene.emoji)
        reversed_ = f"{other} {opposite[scene.position]} {one}"
        told = [prompt.text.startswith(f"{one} {scene.position} {other}")]
        told.append(prompt.text.startswith(reversed_))
        assert sum(told) == 1
        said.add((scene.position, told[0], scene.background == "white"))
    assert len(said) == 8
