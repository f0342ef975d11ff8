"""The prompts of a scene: which words may stand for it in training, and how often.

Half of the mass belongs to the label and its forms, more where there is only one other caption.
"""

import hashlib
from dataclasses import dataclass

from opensana.data.emoji.captions import phrases
from opensana.data.emoji.compose import COLOURS, Scene, describe
from opensana.data.emoji.dataset import Record

# Weights of the forms "red apple", "a red apple", "an emoji of a red apple", "red apple emoji".
FORM_WEIGHTS = (3.0, 3.0, 1.0, 1.0)
NAMED_WHITE = 1.0


@dataclass(frozen=True)
class Prompt:
    """A text and its weight among the prompts of its scene."""

    text: str
    weight: float


def scenes_of(record: Record, *, backgrounds: int) -> list[Scene]:
    """The white scene and scenes on different colours, chosen by a hash of the emoji."""
    colours = sorted(
        (name for name in COLOURS if name != "white"),
        key=lambda name: hashlib.sha256(f"{record.hexcode}/{name}".encode()).digest(),
    )
    grounds = ["white", *colours[:backgrounds]]
    return [Scene(emoji=(record.index,), background=ground) for ground in grounds]


def prompts_of(record: Record, scene: Scene) -> list[Prompt]:
    """All training prompts of a scene; the weights sum to one."""
    label, *others = [caption.text for caption in record.training_captions]
    if scene.background != "white":
        others = others[:1]
    mine, theirs = _forms(label, scene, count=len(FORM_WEIGHTS)), []
    for text in others:
        theirs += _forms(text, scene, count=1)
    share = 1 - min(0.5, 0.25 * len(others))
    weights: dict[str, float] = {}
    for prompts, mass in ((mine, share), (theirs, 1 - share)):
        total = sum(prompt.weight for prompt in prompts)
        for prompt in prompts:
            # Two forms may be one text: "grapes" takes no article.
            weights[prompt.text] = weights.get(prompt.text, 0.0) + mass * prompt.weight / total
    return [Prompt(text, weight) for text, weight in weights.items()]


def _forms(text: str, scene: Scene, *, count: int) -> list[Prompt]:
    """The forms of one caption; only some white scenes have their ground named."""
    if scene.background == "white":
        plain = zip(phrases(text)[:count], FORM_WEIGHTS, strict=False)
        forms = [Prompt(form, weight) for form, weight in plain]
        if count > 2:
            forms.append(Prompt(describe(scene, text, mention_white=True), NAMED_WHITE))
        return forms
    return [Prompt(describe(scene, text), 1.0)]
