from dataclasses import replace
from pathlib import Path

import pytest

from opensana.data.emoji.dataset import Record
from opensana.data.emoji.preparation import build
from opensana.data.emoji.prompts import prompts_of, scenes_of

Members = dict[str, bytes]


@pytest.fixture
def apple(tmp_path: Path, picture_members: Members, caption_members: Members) -> Record:
    data = build(tmp_path / "emoji", pictures=picture_members, captions=caption_members)
    return data.find("red apple")


def test_the_white_scene_comes_first_and_colours_differ(apple: Record) -> None:
    scenes = scenes_of(apple, backgrounds=5)
    grounds = [scene.background for scene in scenes]
    assert grounds[0] == "white"
    assert len(set(grounds)) == 6
    assert scenes == scenes_of(apple, backgrounds=5)
    assert scenes != scenes_of(replace(apple, hexcode="1F431"), backgrounds=5)


def test_the_label_has_half_of_the_mass_or_more(apple: Record) -> None:
    for scene in scenes_of(apple, backgrounds=2):
        weights = {prompt.text: prompt.weight for prompt in prompts_of(apple, scene)}
        assert sum(weights.values()) == pytest.approx(1)
        label = sum(w for text, w in weights.items() if "red apple" in text and "," not in text)
        assert label == pytest.approx(0.5 if scene.background == "white" else 0.75)
        assert not any("rosy" in text for text in weights)  # held out
        named = [text for text in weights if f"{scene.background} background" in text]
        assert len(named) == (1 if scene.background == "white" else len(weights))
