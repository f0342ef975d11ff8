"""Captions in ten more languages and in emoji characters: tables, and who is named how.

No table tells the gender of every noun, so that colours of objects are said in a way that needs no
agreement: "de color rojo", "de couleur rouge", "in Rot", 红色的. Backgrounds have one gender:
fondo, fond, Hintergrund.
"""

import re
from dataclasses import dataclass
from random import Random

from opensana.datasets.emoji.captions import with_article
from opensana.datasets.emoji.scenes import Background

LANGUAGES = ("zh", "zh-hant", "es", "fr", "de", "ja", "ko", "pt", "it", "ru")
"""As emojibase names them; the first five have words for colours and backgrounds."""
CHARACTER = "emoji"
"""The emoji character itself stands beside the languages."""


@dataclass(frozen=True)
class Words:
    """How a language says a background and a colour; {s} is what is shown, {c} a colour's word."""

    background: tuple[str, ...]
    on: dict[str, str]
    """A background's colour as `background` needs it."""
    coloured: tuple[str, ...]
    of: dict[str, str]
    """An object's colour as `coloured` needs it."""


_ZH = {
    "red": "红色", "orange": "橙色", "yellow": "黄色", "green": "绿色", "blue": "蓝色",
    "purple": "紫色", "pink": "粉色", "brown": "棕色", "gray": "灰色", "black": "黑色",
    "white": "白色", "light blue": "浅蓝色", "light green": "浅绿色",
}  # fmt: skip
_ZH_HANT = {
    "red": "紅色", "orange": "橙色", "yellow": "黃色", "green": "綠色", "blue": "藍色",
    "purple": "紫色", "pink": "粉色", "brown": "棕色", "gray": "灰色", "black": "黑色",
    "white": "白色", "light blue": "淺藍色", "light green": "淺綠色",
}  # fmt: skip
_ES = {
    "red": "rojo", "orange": "naranja", "yellow": "amarillo", "green": "verde", "blue": "azul",
    "purple": "morado", "pink": "rosa", "brown": "marrón", "gray": "gris", "black": "negro",
    "white": "blanco", "light blue": "azul claro", "light green": "verde claro",
}  # fmt: skip
_FR = {
    "red": "rouge", "orange": "orange", "yellow": "jaune", "green": "vert", "blue": "bleu",
    "purple": "violet", "pink": "rose", "brown": "marron", "gray": "gris", "black": "noir",
    "white": "blanc", "light blue": "bleu clair", "light green": "vert clair",
}  # fmt: skip
_FR_OF_COULEUR = {**_FR, "green": "verte", "blue": "bleue", "purple": "violette", "gray": "grise"}
_DE_ON = {
    "red": "rotem", "orange": "orangem", "yellow": "gelbem", "green": "grünem", "blue": "blauem",
    "purple": "lilafarbenem", "pink": "rosafarbenem", "brown": "braunem", "gray": "grauem",
    "black": "schwarzem", "white": "weißem", "light blue": "hellblauem",
    "light green": "hellgrünem",
}  # fmt: skip
_DE_IN = {
    "red": "Rot", "orange": "Orange", "yellow": "Gelb", "green": "Grün", "blue": "Blau",
    "purple": "Lila", "pink": "Rosa", "brown": "Braun", "gray": "Grau",
}  # fmt: skip

WORDS: dict[str, Words] = {
    "zh": Words(
        ("{c}背景上的{s}", "{s}，{c}背景", "{c}背景的{s}"), _ZH,
        ("{c}的{s}", "一个{c}的{s}", "{c}{s}"), _ZH,
    ),
    "zh-hant": Words(
        ("{c}背景上的{s}", "{s}，{c}背景", "{c}背景的{s}"), _ZH_HANT,
        ("{c}的{s}", "一個{c}的{s}", "{c}{s}"), _ZH_HANT,
    ),
    "es": Words(
        ("{s} sobre un fondo {c}", "{s} sobre fondo {c}", "{s} en un fondo {c}"), _ES,
        ("{s} de color {c}",), _ES,
    ),
    "fr": Words(
        ("{s} sur un fond {c}", "{s} sur fond {c}"), _FR,
        ("{s} de couleur {c}",), _FR_OF_COULEUR,
    ),
    "de": Words(
        ("{s} auf {c} Hintergrund", "{s} vor {c} Hintergrund"), _DE_ON, ("{s} in {c}",), _DE_IN,
    ),
}  # fmt: skip

# Ending of a label's first word -> its article; where none fits, none is used.
ARTICLES: dict[str, tuple[tuple[str, str], ...]] = {
    "zh": (("", "一个"),),
    "zh-hant": (("", "一個"),),
    "es": (
        ("mano|flor|sal|red|luz|nube", "una"),
        ("[^s]a|ción|dad", "una"),
        ("o|or|ón|el|al", "un"),
    ),
    "fr": (
        ("pomme|tête|fleur|maison|main", "une"),
        (".*(ette|ée|tion|elle|ance|esse|ure|ille)", "une"),
        (".*(eau|age|ment|in|on|oir|ier|ard|et|al|il|ou|isme)", "un"),
    ),
    "de": (
        (".*(ung|heit|keit|ion|e|ei|in)", "eine"),
        (".*(chen|lein|gesicht|herz|auto|er)", "ein"),
    ),
    "pt": (
        ("coração", "um"),
        ("flor|mão|cor|nuvem", "uma"),
        ("a|ção|dade", "uma"),
        ("o|or|el|al|ão", "um"),
    ),
    "it": (("mano", "una"), ("a|ione|tà", "una"), ("o|ore", "un")),
}  # fmt: skip
_MASCULINE_A = re.compile(r"(mapa|planeta|día|tranvía|cometa|panda|koala|gorila|cobra|puma)$")


def named(language: str, label: str) -> str:
    """A label with its article, as far as its ending tells which; else the label alone."""
    first = label.split(" ")[0].lower()
    if language in ("es", "pt") and _MASCULINE_A.search(first):
        return label
    for ending, article in ARTICLES.get(language, ()):
        pattern = ending if language not in ("es", "pt", "it") else f".*({ending})"
        if not ending or re.fullmatch(pattern, first):
            return f"{article}{label}" if language.startswith("zh") else f"{article} {label}"
    return label


def coloured(language: str, label: str, colour: str, dice: Random) -> str:
    """An object of a colour."""
    words = WORDS[language]
    return dice.choice(words.coloured).format(s=label, c=words.of[colour])


def on_background(language: str, text: str, background: Background, dice: Random) -> str:
    """An object on an even background; for the emoji character the words are English."""
    if language == CHARACTER:
        return f"{text} on {with_article(background.top)} background"
    words = WORDS[language]
    return dice.choice(words.background).format(s=text, c=words.on[background.top])
