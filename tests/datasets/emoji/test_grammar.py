import re
from random import Random

import pytest

from opensana.datasets.emoji import grammar
from opensana.datasets.emoji.compose import COLOURS
from opensana.datasets.emoji.grammar import Name, caption, name_of, plural
from opensana.datasets.emoji.recolour import OBJECT_COLOURS
from opensana.datasets.emoji.scenes import (
    MOST,
    PLACES,
    RELATIONS,
    SIZES,
    Background,
    Composition,
    Group,
)

DOG, APPLE = name_of("dog"), name_of("apple")


@pytest.mark.parametrize(
    ("one", "many"),
    [
        ("cat face", "cat faces"),
        ("face with tongue", "faces with tongue"),
        ("cherry", "cherries"),
        ("key", "keys"),
        ("box", "boxes"),
        ("bus", "buses"),
        ("torch", "torches"),
        ("computer mouse", "computer mice"),
        ("kitchen knife", "kitchen knives"),
        ("maple leaf", "maple leaves"),
        ("wolf", "wolves"),
        ("tomato", "tomatoes"),
        ("piano", "pianos"),
        ("tropical fish", "tropical fish"),
        ("moose", "moose"),
        ("snowman", "snowmen"),
        ("game die", "game dice"),
        ("bow and arrow", "bows and arrows"),
        ("glass of milk", "glasses of milk"),
        ("Statue of Liberty", "Statues of Liberty"),
        ("jack-o-lantern", "jack-o-lanterns"),
    ],
)
def test_plurals(one: str, many: str) -> None:
    assert plural(one) == many


@pytest.mark.parametrize("text", ["grapes", "bread", "sunglasses", "cat, pet", "table tennis"])
def test_some_are_not_counted(text: str) -> None:
    assert plural(text) is None


def every(scene: Composition, *names: Name) -> set[str]:
    return {caption(scene, names, Random(seed)) for seed in range(1500)}


def test_one_object_in_many_phrasings() -> None:
    texts = every(Composition((Group(0, colour="gray", size="small"),)), APPLE)
    assert {"a small gray apple", "a little grey apple", "one small gray apple"} <= texts
    assert {"a picture of a small gray apple", "small gray apple"} <= texts
    assert any("gray-coloured" in text for text in texts)
    assert any("grey colored" in text for text in texts)


def test_articles_follow_the_first_word() -> None:
    assert "an apple" in every(Composition((Group(0),)), APPLE)
    assert "an orange dog" in every(Composition((Group(0, colour="orange"),)), DOG)
    on_orange = Composition((Group(0),), background=Background("orange"))
    assert "a dog on an orange background" in every(on_orange, DOG)


def test_numbers_as_words_and_digits() -> None:
    assert {"two dogs", "2 dogs", "a couple of dogs", "a pair of dogs"} <= every(
        Composition((Group(0, 2),)), DOG
    )
    for number in range(2, MOST + 1):
        texts = every(Composition((Group(0, number),)), DOG)
        assert all(re.search(r"\bdogs\b", text) for text in texts)
        assert any(text.startswith(f"{number} ") for text in texts)


def test_a_relation_may_be_told_from_either_side() -> None:
    texts = every(Composition((Group(0), Group(1)), relation="left of"), DOG, APPLE)
    assert {"a dog left of an apple", "an apple right of a dog"} <= texts
    assert not any(re.search(r"dog (\w+ )*right|apple (\w+ )*left", text) for text in texts)
    behind = every(Composition((Group(0), Group(1)), relation="in front of"), DOG, APPLE)
    assert {"a dog in front of an apple", "an apple behind a dog"} <= behind


def test_places_and_backgrounds() -> None:
    texts = every(Composition((Group(0),), place="top left corner"), DOG)
    assert {"a dog in the top left corner", "a dog at the top left"} <= texts
    fading = Composition((Group(0),), background=Background("red", "light blue"))
    assert "a dog on a background fading from red to light blue" in every(fading, DOG)
    soft = Composition((Group(0),), background=Background("red", "white"))
    assert "a dog on a soft red gradient" in every(soft, DOG)
    assert "a dog on a white background" in every(Composition((Group(0),)), DOG)


def test_three_groups_are_a_list() -> None:
    texts = every(Composition((Group(0, 2), Group(1), Group(2))), DOG, APPLE, name_of("key"))
    assert "two dogs, an apple and a key" in texts


def test_the_tables_have_words_for_all_that_a_scene_can_have() -> None:
    assert set(grammar.PLACE_WORDS) == set(PLACES)
    assert set(grammar.RELATION_WORDS) == set(RELATIONS)
    assert set(grammar.SIZE_WORDS) == set(SIZES)
    assert set(grammar.NUMBERS) == set(range(2, MOST + 1))
    assert set(OBJECT_COLOURS) <= set(COLOURS)
    assert set(grammar.COLOUR_WORDS) <= set(COLOURS)


def test_no_two_scenes_share_a_word_for_different_things() -> None:
    for table in (grammar.SIZE_WORDS, grammar.PLACE_WORDS, grammar.NUMBERS):
        words = [word for row in table.values() for word in set(row)]
        assert len(words) == len(set(words))
