from opensana.datasets.emoji.vocabulary import (
    HELD_OUT_FAMILIES,
    TOPICS,
    WELL_KNOWN,
    family,
    held_out_families,
    normal,
    topic_of,
)


def test_hexcodes_have_one_spelling() -> None:
    assert normal("0023-fe0f-20e3") == "23-20E3"
    assert normal("1F3F4-E0067_E0062") == "1F3F4-E0067-E0062"


def test_a_family_spans_skin_tones_and_genders() -> None:
    cooks = ("1F9D1-200D-1F373", "1F468-200D-1F373", "1F469-1F3FF-200D-1F373")
    assert len({family(code) for code in cooks}) == 1
    walking = ("1F6B6", "1F6B6-200D-2640-FE0F", "1F6B6-1F3FD-200D-2642-FE0F-200D-27A1-FE0F")
    assert len({family(code) for code in walking}) == 1
    assert family("1F469-200D-1F680") != family("1F469-200D-1F373")
    assert family("1F46B") == family("1F469-1F3FB-200D-1F91D-200D-1F468-1F3FF")


def test_lone_signs_keep_their_own_family() -> None:
    assert family("2640-FE0F") != family("2642-FE0F")
    assert family("1F3FB") != family("1F3FF")


def test_held_out_families_leave_the_well_known_alone() -> None:
    members = {f"F{index}": [f"thing {index}"] for index in range(200)}
    members |= {f"W{index}": [label] for index, label in enumerate(WELL_KNOWN)}
    held_out = held_out_families(members)
    assert len(held_out) == HELD_OUT_FAMILIES
    assert not any(name.startswith("W") for name in held_out)
    assert held_out == held_out_families(dict(reversed(members.items())))


def test_topics() -> None:
    assert len(TOPICS) == 10
    assert topic_of("red apple", "food-fruit") == "food"
    assert topic_of("green apple", "food-fruit") is None
    assert topic_of("A button (blood type)", "alphanum") is None
    assert topic_of("flag: Norway", "country-flag") is None
