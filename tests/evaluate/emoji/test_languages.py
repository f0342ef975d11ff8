from collections.abc import Sequence

import pytest
from PIL import Image

from opensana.datasets.emoji.compose import Scene, compose
from opensana.datasets.emoji.held_out import is_held_out_language
from opensana.datasets.emoji.languages import LANGUAGES
from opensana.evaluate.emoji.languages import ask_spoken, spoken_questions
from opensana.evaluate.emoji.nearest import references
from tests.datasets.emoji.vocabularies import small_vocabulary

DATA = small_vocabulary()


def test_only_held_out_labels_are_asked_and_english_ones_are_not() -> None:
    asked = spoken_questions(DATA, 100)
    assert set(asked) == {*LANGUAGES, "emoji"}
    for language in LANGUAGES:
        assert all(is_held_out_language(q.record, language) for q in asked[language])
    assert len(asked["emoji"]) == len(DATA.records)
    language = next(name for name in LANGUAGES if asked[name])
    record = asked[language][0].record
    known = small_vocabulary()
    known.languages[language][record.hexcode][0] = "Lemon"
    assert record not in [q.record for q in spoken_questions(known, 100)[language]]


def test_shares_of_each_language() -> None:
    asked = spoken_questions(DATA, 2)
    scenes = {q.prompt: q.record.index for known in asked.values() for q in known}

    def draw(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        return [Image.fromarray(compose(Scene((scenes[p],)), DATA.pictures)) for p in prompts]

    found = ask_spoken(draw, DATA, references(DATA, DATA.vocabulary), 2)
    assert found.pictures == 2
    assert found.characters == found.mean == pytest.approx(1.0)
