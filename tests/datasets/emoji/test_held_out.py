from opensana.datasets.emoji.held_out import (
    held_out_parts,
    is_held_out_colour,
    is_held_out_language,
    is_held_out_number,
    is_held_out_pair,
)
from opensana.datasets.emoji.languages import LANGUAGES
from opensana.datasets.emoji.recolour import OBJECT_COLOURS
from tests.datasets.emoji.vocabularies import small_vocabulary

RECORDS = small_vocabulary().records


def test_one_in_ten_is_held_out() -> None:
    pairs = [is_held_out_pair(a, b) for a in RECORDS for b in RECORDS if a.index < b.index]
    colours = [is_held_out_colour(a, c) for a in RECORDS for c in OBJECT_COLOURS]
    numbers = [is_held_out_number(a, n) for a in RECORDS for n in range(2, 60)]
    languages = [is_held_out_language(a, n) for a in RECORDS for n in LANGUAGES]
    for found in (pairs, colours, numbers, languages):
        assert 0.04 < sum(found) / len(found) < 0.2
    assert not any(is_held_out_number(a, 1) for a in RECORDS)


def test_the_parts_of_a_scene_that_are_held_out() -> None:
    one, number = next((r, n) for r in RECORDS for n in range(2, 60) if is_held_out_number(r, n))
    assert held_out_parts([(one, number, None)]) == {"number"}
    assert held_out_parts([(one, 1, None)]) == set()
    painted, colour = next(
        (r, c) for r in RECORDS for c in OBJECT_COLOURS if is_held_out_colour(r, c)
    )
    assert held_out_parts([(painted, 1, colour)]) == {"colour"}
    pair = next((a, b) for a in RECORDS for b in RECORDS if a != b and is_held_out_pair(a, b))
    assert held_out_parts([(pair[0], 1, None), (pair[1], 1, None)]) == {"pair"}
    assert is_held_out_pair(*pair) == is_held_out_pair(*reversed(pair))
