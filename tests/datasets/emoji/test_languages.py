from random import Random

import pytest

from opensana.datasets.emoji.compose import COLOURS
from opensana.datasets.emoji.languages import LANGUAGES, WORDS, coloured, named, on_background
from opensana.datasets.emoji.recolour import OBJECT_COLOURS
from opensana.datasets.emoji.scenes import Background


def test_the_first_five_have_words_for_every_colour() -> None:
    assert tuple(WORDS) == LANGUAGES[:5]
    for words in WORDS.values():
        assert set(words.on) == set(COLOURS)
        assert set(OBJECT_COLOURS) <= set(words.of)


@pytest.mark.parametrize(
    ("language", "label", "expected"),
    [
        ("es", "manzana roja", "una manzana roja"),
        ("es", "perro", "un perro"),
        ("es", "mapa", "mapa"),
        ("es", "mano", "una mano"),
        ("es", "camión", "un camión"),
        ("fr", "voiture", "une voiture"),
        ("fr", "robe", "robe"),
        ("fr", "fusée", "une fusée"),
        ("fr", "château", "un château"),
        ("de", "Hundegesicht", "ein Hundegesicht"),
        ("de", "Rakete", "eine Rakete"),
        ("de", "Berg", "Berg"),
        ("pt", "coração", "um coração"),
        ("it", "razzo", "un razzo"),
        ("zh", "红苹果", "一个红苹果"),
        ("ja", "車", "車"),
        ("ru", "ракета", "ракета"),
    ],
)
def test_articles_where_an_ending_tells(language: str, label: str, expected: str) -> None:
    assert named(language, label) == expected


def test_colours_and_backgrounds_need_no_agreement() -> None:
    dice = Random(0)
    assert coloured("es", "casa", "red", dice) == "casa de color rojo"
    assert coloured("fr", "maison", "green", dice) == "maison de couleur verte"
    assert coloured("de", "Haus", "blue", dice) == "Haus in Blau"
    assert coloured("zh", "苹果", "green", dice).endswith("苹果")
    yellow = Background("yellow")
    assert on_background("emoji", "🐶", yellow, dice) == "🐶 on a yellow background"
    assert "gelbem Hintergrund" in on_background("de", "Haus", yellow, dice)
    assert "fond jaune" in on_background("fr", "maison", yellow, dice).replace("un fond", "fond")
