"""Which emoji the embedded model learns, which are held out, and which are the same emoji.

The vocabulary is about 500 everyday things that look different from one another. Flags, letters,
symbols and skin tones stay out: they are for the autoencoder only.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

HELD_OUT_FAMILIES = 64

PERSON = "1F9D1"
SKIN_TONES = {"1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"}
# Joiner, variation selector, female and male sign, arrow "facing right".
DROPPED = SKIN_TONES | {"200D", "FE0F", "2640", "2642", "27A1"}
SAME = {"1F468": PERSON, "1F469": PERSON, "1F466": "1F9D2", "1F467": "1F9D2"}
# Emoji that have a code point of their own for each gender, or a short form of a sequence.
ALIASES = {
    "1F474": "1F9D3",  # older people
    "1F475": "1F9D3",
    "1F57A": "1F483",  # dancing
    "1F478": "1F934",  # prince, princess
    "1F936": "1F385",  # Claus
    "1F9D1-1F384": "1F385",
    "1F930": "1FAC4",  # pregnant
    "1FAC3": "1FAC4",
    "1F931": "1F9D1-1F37C",  # feeding a baby
    "1F46D": "1F9D1-1F91D-1F9D1",  # holding hands
    "1F46B": "1F9D1-1F91D-1F9D1",
    "1F46C": "1F9D1-1F91D-1F9D1",
    "1F491": "1F9D1-2764-1F9D1",  # couple with heart
    "1F48F": "1F9D1-2764-1F48B-1F9D1",  # kiss
    "1FAF1-1FAF2": "1F91D",  # handshake
}

WELL_KNOWN = (
    "red apple", "banana", "strawberry", "lemon", "watermelon", "pizza", "hamburger", "doughnut",
    "cat face", "dog face", "lion", "elephant", "penguin", "frog", "octopus", "butterfly",
    "rocket", "airplane", "automobile", "bicycle", "sailboat", "house", "castle", "rainbow",
    "soccer ball", "basketball", "guitar", "trumpet", "trophy", "wrapped gift", "balloon",
    "sun", "star", "fire", "snowman", "sunflower", "cactus", "rose", "red heart", "robot", "ghost",
    "grinning face", "smiling face with sunglasses", "crown", "umbrella", "key", "hammer",
    "camera", "laptop", "light bulb", "birthday cake", "hot beverage", "pencil", "books",
)  # fmt: skip


@dataclass(frozen=True)
class Topic:
    """A part of the vocabulary: whole subgroups without some labels, or only the listed labels."""

    subgroups: tuple[str, ...]
    without: tuple[str, ...] = ()
    only: tuple[str, ...] = ()


TOPICS: dict[str, Topic] = {
    "faces": Topic(
        ("face-smiling", "face-affection", "face-tongue", "face-hand", "face-unwell", "face-hat",
         "face-glasses", "face-concerned", "face-negative", "face-costume", "face-sleepy", "heart",
         "face-neutral-skeptical", "cat-face", "monkey-face", "emotion"),
        only=(
            "grinning face", "face with tears of joy", "upside-down face", "winking face",
            "smiling face with halo", "smiling face with heart-eyes",
            "face blowing a kiss", "face with tongue", "money-mouth face", "thinking face",
            "zipper-mouth face", "sleeping face", "face with medical mask", "nauseated face",
            "cold face", "hot face", "exploding head", "cowboy hat face", "partying face",
            "smiling face with sunglasses", "nerd face", "loudly crying face",
            "face screaming in fear", "enraged face", "smiling face with horns", "skull",
            "pile of poo", "clown face", "ogre", "goblin", "ghost", "alien", "alien monster",
            "robot", "see-no-evil monkey", "red heart", "broken heart", "heart on fire",
            "collision", "speech balloon",
        ),
    ),
    "animals": Topic(
        ("animal-mammal", "animal-bird", "animal-amphibian", "animal-reptile", "animal-marine",
         "animal-bug"),
        without=(
            "monkey", "orangutan", "guide dog", "service dog", "dog", "cat", "tiger", "horse", "ox",
            "water buffalo", "cow", "pig", "pig nose", "ram", "ewe", "two-hump camel", "mouse",
            "rabbit", "hatching chick", "front-facing baby chick", "black bird", "wing", "goose",
            "dragon", "whale", "spider web", "microbe", "mosquito", "cockroach", "bison", "badger",
            "mammoth", "rat", "chipmunk", "dodo", "feather", "beetle", "paw prints", "poodle",
        ),
    ),
    "plants": Topic(
        ("plant-flower", "plant-other"),
        without=("rosette", "white flower", "sheaf of rice", "empty nest", "blossom",
                 "leaf fluttering in wind", "shamrock", "wilted flower"),
    ),
    "food": Topic(
        ("food-fruit", "food-vegetable", "food-prepared", "food-asian", "food-sweet"),
        without=("green apple", "melon", "baguette bread", "tamale", "stuffed flatbread", "falafel",
                 "flatbread", "fondue", "ginger root", "chestnut", "oden", "custard", "shortcake",
                 "pot of food", "bowl with spoon", "curry rice", "rice cracker", "canned food",
                 "cut of meat", "moon cake", "roasted sweet potato", "shallow pan of food",
                 "bento box", "steaming bowl", "leafy green"),
    ),
    "drinks": Topic(
        ("drink", "dishware"),
        without=("sake", "clinking beer mugs", "pouring liquid", "tumbler glass", "beverage box",
                 "fork and knife with plate", "jar", "mate", "clinking glasses",
                 "amphora"),
    ),
    "vehicles": Topic(
        ("transport-ground", "transport-water", "transport-air"),
        without=("railway car", "train", "metro", "light rail", "station", "tram",
                 "mountain railway",
                 "oncoming bus", "trolleybus", "minibus", "oncoming police car", "oncoming taxi",
                 "oncoming automobile", "articulated lorry", "motorized wheelchair", "bus stop",
                 "motorway", "railway track", "vertical traffic light", "construction", "ferry",
                 "high-speed train", "small airplane", "airplane departure", "airplane arrival",
                 "suspension railway", "aerial tramway", "motor boat", "ship", "pickup truck",
                 "sport utility vehicle", "seat", "monorail", "oil drum", "auto rickshaw"),
    ),
    "places": Topic(
        ("place-map", "place-geographic", "place-building", "place-religious", "place-other"),
        only=(
            "globe showing Americas", "world map", "compass", "snow-capped mountain", "volcano",
            "beach with umbrella", "desert", "desert island", "classical building", "stadium",
            "brick", "rock", "wood", "hut", "house", "office building", "hospital", "school",
            "factory", "Japanese castle", "castle", "Tokyo tower", "Statue of Liberty",
            "church", "mosque", "shinto shrine", "fountain", "tent", "sunrise over mountains",
            "bridge at night", "carousel horse", "playground slide", "ferris wheel",
            "roller coaster", "circus tent",
        ),
    ),
    "sky": Topic(
        ("sky-weather", "time"),
        only=(
            "crescent moon", "full moon", "sun", "sun with face", "ringed planet", "star",
            "shooting star", "cloud", "sun behind cloud", "cloud with rain", "cloud with lightning",
            "tornado", "rainbow", "umbrella", "high voltage", "snowflake", "snowman", "comet",
            "fire", "droplet", "water wave", "hourglass done", "watch", "alarm clock",
            "mantelpiece clock", "thermometer",
        ),
    ),
    "activities": Topic(
        ("event", "award-medal", "sport", "game", "arts-crafts", "musical-instrument", "music"),
        without=("sparkler", "pine decoration", "tanabata tree", "ticket", "moon viewing ceremony",
                 "reminder ribbon", "1st place medal", "2nd place medal", "3rd place medal",
                 "softball", "rugby football", "spade suit", "heart suit", "diamond suit",
                 "club suit", "musical score", "musical note", "cricket game", "goal net", "knot",
                 "long drum", "flower playing cards", "mahjong red dragon", "control knobs",
                 "level slider", "joystick", "carp streamer", "Japanese dolls", "firecracker",
                 "confetti ball", "admission tickets", "wind chime", "field hockey", "lacrosse",
                 "flag in hole", "military medal", "running shirt", "martial arts uniform"),
    ),
    "objects": Topic(
        ("clothing", "sound", "phone", "computer", "light-video", "book-paper", "mail", "writing",
         "money", "office", "lock", "tool", "science", "medical", "household", "other-object"),
        only=(
            "glasses", "sunglasses", "goggles", "lab coat", "necktie", "t-shirt", "jeans", "scarf",
            "gloves", "coat", "socks", "dress", "kimono", "bikini", "handbag", "backpack",
            "running shoe", "high-heeled shoe", "hiking boot", "crown", "top hat",
            "graduation cap", "lipstick", "ring", "gem stone", "megaphone", "bell", "mobile phone",
            "telephone", "battery", "electric plug", "laptop", "printer", "computer mouse",
            "floppy disk", "abacus", "movie camera", "clapper board", "television",
            "camera", "magnifying glass tilted left", "candle", "light bulb", "flashlight",
            "red paper lantern", "closed book", "open book", "books", "scroll", "newspaper",
            "coin",
            "money bag", "dollar banknote", "money with wings", "credit card", "envelope",
            "package",
            "pencil", "fountain pen", "paintbrush", "crayon", "briefcase", "file folder",
            "calendar", "bar chart", "clipboard", "pushpin", "paperclip", "triangular ruler",
            "scissors", "wastebasket", "key", "hammer", "axe", "dagger", "crossed swords",
            "bomb", "boomerang", "bow and arrow", "shield", "wrench", "screwdriver", "nut and bolt",
            "gear", "balance scale", "hook", "toolbox", "magnet", "ladder", "test tube", "dna",
            "microscope", "telescope", "syringe", "pill", "stethoscope", "door", "mirror", "window",
            "bed", "chair", "toilet", "bathtub", "mouse trap", "broom", "basket", "roll of paper",
            "bucket", "soap", "toothbrush", "sponge", "fire extinguisher", "shopping cart",
            "coffin", "moai",
        ),
    ),
}  # fmt: skip


def normal(hexcode: str) -> str:
    """A code point sequence in the one spelling used here: upper case, no padding, no FE0F."""
    parts = re.split(r"[-_]", hexcode.upper())
    return "-".join(part.lstrip("0") for part in parts if part != "FE0F")


def family(hexcode: str) -> str:
    """The id shared by the skin tones and genders of one emoji."""
    parts = [part for part in normal(hexcode).split("-") if part not in DROPPED]
    # A lone sign or skin tone is its own emoji.
    joined = "-".join(SAME.get(part, part) for part in parts) or normal(hexcode)
    return ALIASES.get(joined, joined)


def topic_of(label: str, subgroup: str) -> str | None:
    """The topic of the vocabulary that an emoji belongs to, if any."""
    for name, topic in TOPICS.items():
        listed = label in topic.only if topic.only else label not in topic.without
        if subgroup in topic.subgroups and listed:
            return name
    return None


def held_out_families(members: Mapping[str, Sequence[str]]) -> set[str]:
    """64 families by the order of a hash; `members` maps a family to the labels of its emoji.

    Families of the well-known emoji stay in training: newcomers will ask for them first.
    """
    free = [name for name, labels in members.items() if not set(labels) & set(WELL_KNOWN)]
    ordered = sorted(free, key=lambda name: hashlib.sha256(name.encode()).digest())
    return set(ordered[:HELD_OUT_FAMILIES])
