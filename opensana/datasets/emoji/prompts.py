"""The scenes of the vocabulary and the prompts of each: which words stand for it, and how often.

A fifth of a single emoji's mass belongs to the label and its forms, more where there are few other
captions. A pair has one prompt, made of two labels.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from opensana.datasets.emoji.captions import alike, phrases, words
from opensana.datasets.emoji.compose import COLOURS, PAIRS, Scene, describe, describe_reversed
from opensana.datasets.emoji.dataset import Record
from opensana.datasets.emoji.held_out import is_held_out_pair

# Weights of the forms "red apple", "a red apple", "an emoji of a red apple", "red apple emoji".
FORM_WEIGHTS = (3.0, 3.0, 1.0, 1.0)
NAMED_WHITE = 1.0
KEYWORD_WEIGHT = 3.0
LARGEST_SHARE_OF_OTHERS = 0.8
BACKGROUNDS = 6
"""On so many colours each emoji is trained on."""
PAIR_ROUNDS = 24
"""In so many pairs each emoji is, the held-out ones among them."""
COLOURED_PAIRS = 4
"""One pair in so many stands on a colour, the others on white."""


@dataclass(frozen=True)
class Prompt:
    """A text and its weight among the prompts of its scene."""

    text: str
    weight: float


def scenes_of(record: Record, *, backgrounds: int) -> list[Scene]:
    """The white scene and scenes on different colours, chosen by a hash of the emoji."""
    colours = _coloured(record.hexcode)[:backgrounds]
    return [Scene(emoji=(record.index,), background=name) for name in ("white", *colours)]


def pair_scenes(
    records: Sequence[Record], *, rounds: int, held_out: bool = False
) -> list[tuple[Scene, list[Prompt]]]:
    """Two emoji side by side or one above the other: each record meets another in every round.

    The prompt tells the relation from either side: "A left of B" or "B right of A". With
    `held_out` these are the pairs that training leaves out instead.
    """
    scenes: list[tuple[Scene, list[Prompt]]] = []
    for turn in range(rounds):
        order = sorted(records, key=lambda record: _digest(f"{turn}/{record.hexcode}"))
        for one, other in zip(order[::2], order[1::2], strict=False):
            if is_held_out_pair(one, other) == held_out:
                scenes.append(_pair(one, other, turn))
    return scenes


def _pair(one: Record, other: Record, turn: int) -> tuple[Scene, list[Prompt]]:
    dice = _digest(f"{turn}/{one.hexcode}/{other.hexcode}")
    names = list(PAIRS)
    scene = Scene(
        emoji=(one.index, other.index),
        position=names[dice[0] % len(names)],
        background="white" if dice[1] % COLOURED_PAIRS else _coloured(dice.hex())[0],
    )
    say = describe_reversed if dice[2] % 2 else describe
    return scene, [Prompt(say(scene, one.label, other.label), 1.0)]


def _coloured(key: str) -> list[str]:
    """All colours but white, in an order that the key decides."""
    return sorted(set(COLOURS) - {"white"}, key=lambda name: _digest(f"{key}/{name}"))


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def keywords_of(records: Sequence[Record]) -> list[list[Prompt]]:
    """The single words that each record is known by, beside its captions.

    A word that names another record is left out, and one that many share weighs the less: drawn
    as often as a name, both would make blends.
    """
    names = {one.text.lower() for record in records for one in record.training_captions}
    known = [[word for word in _keywords(record) if word not in names] for record in records]
    owners = Counter(word for mine in known for word in mine)
    return [[Prompt(word, KEYWORD_WEIGHT / owners[word]) for word in mine] for mine in known]


def _keywords(record: Record) -> list[str]:
    """Tags and keywords once each; none of them tells the held-out caption."""
    held_out = record.held_out_caption
    spelled = (words(word.lower()) for word in (*record.tags, *record.keywords))
    return [
        word
        for word in dict.fromkeys(spelled)
        if word is not None and not (held_out and alike(word, held_out.text))
    ]


def prompts_of(record: Record, scene: Scene, *, keywords: Sequence[Prompt] = ()) -> list[Prompt]:
    """All training prompts of a scene with one emoji; the weights sum to one.

    The keywords stand for the white scene alone.
    """
    label, *others = [caption.text for caption in record.training_captions]
    if scene.background != "white":
        others, keywords = others[:1], ()
    mine, theirs = _forms(label, scene, count=len(FORM_WEIGHTS)), []
    for text in others:
        theirs += _forms(text, scene, count=1)
    theirs += keywords
    share = 1 - min(LARGEST_SHARE_OF_OTHERS, 0.25 * sum(prompt.weight for prompt in theirs))
    weights: dict[str, float] = {}
    for prompts, mass in ((mine, share), (theirs, 1 - share)):
        total = sum(prompt.weight for prompt in prompts)
        for prompt in prompts:
            # Two forms may be one text: "grapes" takes no article.
            weights[prompt.text] = weights.get(prompt.text, 0.0) + mass * prompt.weight / total
    return [Prompt(text, weight) for text, weight in weights.items()]


def _forms(text: str, scene: Scene, *, count: int) -> list[Prompt]:
    """The forms of one caption; only some white scenes have their background named."""
    if scene.background == "white":
        plain = zip(phrases(text)[:count], FORM_WEIGHTS, strict=False)
        forms = [Prompt(form, weight) for form, weight in plain]
        if count > 2:
            forms.append(Prompt(describe(scene, text, mention_white=True), NAMED_WHITE))
        return forms
    return [Prompt(describe(scene, text), 1.0)]
