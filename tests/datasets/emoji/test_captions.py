import pytest

from opensana.datasets.emoji.captions import (
    captions_of,
    label_with_tags,
    phrases,
    with_article,
    words,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("red apple", "a red apple"),
        ("ox", "an ox"),
        ("hourglass done", "an hourglass done"),
        ("unicorn", "a unicorn"),
        ("umbrella", "an umbrella"),
        ("grapes", "grapes"),
        ("glass of milk", "a glass of milk"),
        ("bus", "a bus"),
        ("nest with eggs", "a nest with eggs"),
        ("books", "books"),
        ("broccoli", "broccoli"),
        ("ear of corn", "an ear of corn"),
        ("Statue of Liberty", "the Statue of Liberty"),
        ("red apple, fruit", "red apple, fruit"),
    ],
)
def test_articles(text: str, expected: str) -> None:
    assert with_article(text) == expected


def test_shortcodes_become_words() -> None:
    assert words("flying_saucer") == "flying saucer"
    assert words("female-cook") == "female cook"
    for unreadable in ("+1", "-1", "100", "man_cook_tone3", "ok"):
        assert words(unreadable) is None


def test_tags_say_something_new() -> None:
    tags = ["apple", "fruit", "red", "diet", "food", "ripe"]
    assert label_with_tags("red apple", tags) == "red apple, fruit, diet, food"
    assert label_with_tags("red apple", ["apple"]) is None


def test_captions_are_different_and_one_is_held_out() -> None:
    codes = {"github": ["apple"], "joypixels": ["apple", "Red_Apple", "rosy_fruit"]}
    captions = captions_of("1F34E", "red apple", ["diet"], codes)
    assert [c.text for c in captions] == ["red apple", "red apple, diet", "apple", "rosy fruit"]
    assert [c.text for c in captions if c.held_out] == ["rosy fruit"]
    assert captions[0].source == "label"


def test_part_of_the_label_is_never_held_out() -> None:
    captions = captions_of("1F431", "cat face", ["pet"], {"github": ["cat"]})
    assert not any(caption.held_out for caption in captions)


def test_the_name_of_another_emoji_is_no_caption() -> None:
    captions = captions_of("1F431", "cat face", [], {"github": ["cat"]}, taken={"cat"})
    assert [caption.text for caption in captions] == ["cat face"]


def test_phrases() -> None:
    assert phrases("apple") == ("apple", "an apple", "an emoji of an apple", "apple emoji")
    assert phrases("apple, fruit") == ("apple, fruit",)


def test_a_held_out_caption_is_not_listed_behind_the_label() -> None:
    codes = {"github": ["boom"], "cldr": ["crash_bang"], "joypixels": ["impact"]}
    captions = captions_of("1F4A5", "collision", ["bomb", "comic"], codes)
    (held_out,) = (one.text for one in captions if one.held_out)
    assert any(one.source == "label+tags" for one in captions)
    again = captions_of("1F4A5", "collision", ["bomb", f"{held_out}s"], codes)
    assert {one.text for one in captions} - {one.text for one in again} == {
        "collision, bomb, comic"
    }
    assert [one.text for one in again if one.held_out] == [held_out]
