"""How a scene is said in English: tables of phrasings, and the few rules that join them.

Each row begins with the plainest phrasing. British and American spellings stand side by side.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from opensana.datasets.emoji.captions import HEAD_END, MASS, is_plural, with_article
from opensana.datasets.emoji.compose import COLOURS
from opensana.datasets.emoji.scenes import Background, Composition, Group

# ------------------------------------------------------------------ tables

NUMBERS: dict[int, tuple[str, ...]] = {
    2: ("two", "2", "a couple of", "a pair of"),
    3: ("three", "3"),
    4: ("four", "4"),
    5: ("five", "5"),
}
ONES = ("a", "a", "a", "one", "a single", "")
""" "a" stands for the article that a name takes; the empty word leaves it out."""
COLOUR_WORDS: dict[str, tuple[str, ...]] = {
    "gray": ("gray", "grey"),
    "purple": ("purple", "purple", "violet"),
    "light blue": ("light blue", "pale blue", "sky blue"),
    "light green": ("light green", "pale green"),
}
COLOURED = ("{c} {n}",) * 8 + ("{c}-coloured {n}", "{c} colored {n}")
SIZE_WORDS: dict[str, tuple[str, ...]] = {
    "tiny": ("tiny", "very small", "teeny"),
    "small": ("small", "little"),
    "plain": ("",),
    "big": ("big", "large", "huge"),
}
PLACE_WORDS: dict[str, tuple[str, ...]] = {
    "center": ("in the center", "in the centre", "in the middle", "at the center"),
    "left": ("on the left", "on the left side", "at the left", "to the left"),
    "right": ("on the right", "on the right side", "at the right", "to the right"),
    "top": ("at the top", "in the upper part", "at the very top"),
    "bottom": ("at the bottom", "in the lower part", "at the very bottom"),
    "top left corner": ("in the top left corner", "at the top left", "in the upper left corner"),
    "top right corner": ("in the top right corner", "at the top right", "in the upper right"),
    "bottom left corner": (
        "in the bottom left corner", "at the bottom left", "in the lower left corner",
    ),
    "bottom right corner": (
        "in the bottom right corner", "at the bottom right", "in the lower right corner",
    ),
}  # fmt: skip
# {a} is the first object; some tell the same from the second one.
RELATION_WORDS: dict[str, tuple[str, ...]] = {
    "and": ("{a} and {b}", "{a} and {b}", "{a} with {b}", "{a}, {b}", "both {a} and {b}"),
    "left of": (
        "{a} left of {b}", "{a} to the left of {b}", "{a} on the left of {b}",
        "{b} right of {a}", "{b} to the right of {a}",
    ),
    "right of": (
        "{a} right of {b}", "{a} to the right of {b}", "{a} on the right of {b}",
        "{b} left of {a}", "{b} to the left of {a}",
    ),
    "next to": ("{a} next to {b}", "{a} beside {b}", "{a} by {b}", "{a} alongside {b}"),
    "above": ("{a} above {b}", "{a} over {b}", "{a} on top of {b}", "{b} below {a}"),
    "below": ("{a} below {b}", "{a} under {b}", "{a} beneath {b}", "{b} above {a}"),
    "in front of": ("{a} in front of {b}", "{b} behind {a}"),
}  # fmt: skip
BACKGROUND_WORDS = (
    "{s} on {c} background", "{s} on {c} background", "{s} on {c} background",
    "{s} against {c} background", "{s} on {c} ground", "{s} with {c} background",
    "{s}, {bare} background",
)  # fmt: skip
FADING_WORDS = (
    "{s} on a background fading from {c} to {d}", "{s} on a {c} to {d} gradient",
    "{s} on a gradient from {c} to {d}", "{s} on a {c} and {d} gradient background",
)  # fmt: skip
SOFT_WORDS = (
    "{s} on a soft {c} gradient", "{s} on a {c} gradient background",
    "{s} on a background fading from {c} to white",
)  # fmt: skip
OPENINGS = ("{s}",) * 14 + (
    "a picture of {s}", "an emoji of {s}", "a photo of {s}", "draw {s}", "{s}.",
    "an image of {s}",
)  # fmt: skip
WHITE_NAMED = 0.06
"""How often a white background is said."""

PLURALS = {
    "mouse": "mice", "wolf": "wolves", "knife": "knives", "leaf": "leaves", "scarf": "scarves",
    "die": "dice", "fish": "fish", "deer": "deer", "moose": "moose", "shrimp": "shrimp",
    "squid": "squid", "moai": "moai", "octopus": "octopuses", "cactus": "cacti", "ox": "oxen",
    "goose": "geese", "potato": "potatoes", "tomato": "tomatoes", "mango": "mangoes",
    "volcano": "volcanoes", "tornado": "tornadoes", "person": "people", "man": "men",
    "woman": "women", "child": "children", "tooth": "teeth", "foot": "feet", "sheep": "sheep",
    "t-rex": "T-Rexes", "aircraft": "aircraft", "loaf": "loaves", "shelf": "shelves",
    "hippopotamus": "hippopotamuses", "rhinoceros": "rhinoceroses",
    "bow and arrow": "bows and arrows", "nut and bolt": "nuts and bolts",
    "fork and knife": "forks and knives",
    "magnifying glass tilted left": "magnifying glasses tilted left",
    "hourglass done": "hourglasses done", "face blowing a kiss": "faces blowing a kiss",
    "face screaming in fear": "faces screaming in fear", "snowman": "snowmen",
    "blowfish": "blowfish", "jellyfish": "jellyfish",
}  # fmt: skip
NOT_NOUNS = frozenset((
    "ping pong", "table tennis", "rain", "hooray", "lmao", "haha", "joy", "tears of joy", "wink",
    "distressed", "frightened", "shocked", "hot", "cold", "too cool", "sunglasses cool", "party",
    "birthday", "soccer", "billiards", "speech", "lightning", "cloud rain", "cloud lightning",
    "cloud tornado", "direct hit", "money wings", "frame photo", "pen fountain", "medal sports",
    "halo", "bullettrain front", "satellite orbital", "mouse three button", "lower left crayon",
    "android", "cup straw", "mountain snow", "pencil2", "umbrella2", "snowman2", "star3", "office",
    "mobile", "screaming in fear", "blowing a kiss", "tongue out", "stuck out tongue", "hankey",
    "see no evil", "nauseated", "sleeping", "grinning", "partying", "flirty", "upside down",
    "smiling imp", "medical mask", "mask", "heart eyes", "money mouth", "zipper mouth", "icecream",
    "hockey", "mandarin", "high voltage", "cooking",
))  # fmt: skip
"""Captions that name no thing; they are no part of a sentence about several."""
EVERYDAY: dict[str, tuple[str, ...]] = {
    "airplane": ("plane", "aeroplane"), "doughnut": ("donut",), "bicycle": ("bike",),
    "hot beverage": ("cup of coffee", "coffee cup"), "wrapped gift": ("present",),
    "mobile phone": ("phone", "smartphone", "cell phone"), "hamburger": ("burger",),
    "rabbit face": ("rabbit", "bunny"), "monkey face": ("monkey",), "baby chick": ("chick",),
    "television": ("tv",), "eggplant": ("aubergine",), "deciduous tree": ("tree",),
    "evergreen tree": ("fir tree", "pine tree"), "wastebasket": ("trash can", "waste bin"),
    "globe showing Americas": ("globe",), "hourglass done": ("hourglass",),
    "magnifying glass tilted left": ("magnifying glass",), "tennis": ("tennis racket",),
    "high voltage": ("lightning bolt",), "soft ice cream": ("ice cream cone",),
    "pig face": ("pig",), "mouse face": ("mouse",),
    "hot pepper": ("chili pepper", "chilli"),
    "high-heeled shoe": ("high heel",), "running shoe": ("sneaker", "trainer"),
    "delivery truck": ("lorry",), "flying saucer": ("ufo",), "french fries": ("chips",),
    "sunglasses": ("shades",), "video game": ("game controller", "gamepad"),
    "potted plant": ("houseplant",), "cooking": ("frying pan",), "lady beetle": ("ladybird",),
}  # fmt: skip
"""More words for a kind, by its label."""

# ------------------------------------------------------------------ rules

Item = TypeVar("Item")


@dataclass(frozen=True)
class Name:
    """A noun for a kind, and its plural, or None where it is not counted."""

    one: str
    many: str | None


def name_of(text: str) -> Name:
    """A caption as a noun: "cat face", "cat faces"."""
    return Name(text, plural(text))


def plural(text: str) -> str | None:
    """Of a countable noun, by its head; None for mass nouns and plurals."""
    if text.lower() in PLURALS:
        return PLURALS[text.lower()]
    if re.search(r"[,:]|\d$", text):
        return None
    head, rest = _head(text)
    words = head.split(" ")
    if head.lower() in MASS or words[-1].lower() in MASS or is_plural(head.lower()):
        return None
    words[-1] = PLURALS.get(words[-1].lower(), _regular(words[-1]))
    return " ".join(words) + rest


def _head(text: str) -> tuple[str, str]:
    found = re.search(HEAD_END, text)
    return (text, "") if found is None else (text[: found.start()], text[found.start() :])


def _regular(word: str) -> str:
    if re.search(r"[^aeiou]y$", word):
        return word[:-1] + "ies"
    return word + ("es" if re.search(r"(s|x|z|ch|sh)$", word) else "s")


def caption(scene: Composition, names: Sequence[Name], dice: Random) -> str:
    """A scene in words, one name for each of its groups."""
    subjects = [_group(*both, dice) for both in zip(scene.groups, names, strict=True)]
    text = _subject(scene, subjects, dice)
    if scene.place is not None:
        text = f"{text} {dice.choice(PLACE_WORDS[scene.place])}"
    return dice.choice(OPENINGS).format(s=on_background(text, scene.background, dice))


def _subject(scene: Composition, subjects: list[str], dice: Random) -> str:
    if len(subjects) == 1:
        return subjects[0]
    if len(subjects) == 2:
        first, second = subjects
        return dice.choice(RELATION_WORDS[scene.relation]).format(a=first, b=second)
    return ", ".join(subjects[:-1]) + f" and {subjects[-1]}"


def _group(group: Group, name: Name, dice: Random) -> str:
    noun = name.one if group.number == 1 else name.many
    assert noun is not None, f"{name.one} is not counted"
    if group.colour is not None:
        noun = dice.choice(COLOURED).format(c=colour_word(group.colour, dice), n=noun)
    noun = f"{dice.choice(SIZE_WORDS[group.size])} {noun}".strip()
    if group.number > 1:
        return f"{dice.choice(NUMBERS[group.number])} {noun}"
    named = with_article(noun)
    one = dice.choice(ONES)
    if one == "a" or named == noun:
        return named
    return f"{one} {noun}".strip()


def on_background(text: str, background: Background, dice: Random) -> str:
    """A scene with its background; a white one is seldom named."""
    if background.bottom is not None:
        words = SOFT_WORDS if background.bottom == "white" else FADING_WORDS
        first, last = (colour_word(name, dice) for name in (background.top, background.bottom))
        return dice.choice(words).format(s=text, c=first, d=last)
    if background.top == "white" and dice.random() >= WHITE_NAMED:
        return text
    colour = colour_word(background.top, dice)
    return dice.choice(BACKGROUND_WORDS).format(s=text, c=with_article(colour), bare=colour)


def colour_word(colour: str, dice: Random) -> str:
    """One of the words for a colour of an object or a background."""
    assert colour in COLOURS
    return dice.choice(COLOUR_WORDS.get(colour, (colour,)))
