"""Which scenes training and the questions are drawn from: seeded, and nothing held out in between.

Training takes scenes without any held-out combination; a question takes scenes of the same kind
that have the one it asks about.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from random import Random

import numpy as np

from opensana.datasets.emoji.captions import alike
from opensana.datasets.emoji.compose import COLOURS
from opensana.datasets.emoji.dataset import EmojiData, Record
from opensana.datasets.emoji.grammar import EVERYDAY, NOT_NOUNS, Name, caption, name_of
from opensana.datasets.emoji.held_out import held_out_parts
from opensana.datasets.emoji.recolour import (
    OBJECT_COLOURS,
    can_be_coloured,
    main_colour,
    says_colour,
)
from opensana.datasets.emoji.scenes import (
    HALVES,
    MOST,
    PLACES,
    WHITE,
    Background,
    Composition,
    Group,
    Painter,
)

ON_COLOUR = 0.25
"""How often a scene stands on a colour, where the task leaves it open."""
LABEL = 0.5
"""How often a kind is called by its label, if it has other names."""
LONGEST_NAME = 4  # words


@dataclass(frozen=True)
class Vocabulary:
    """The kinds that scenes are made of, and what can be said and done with each."""

    data: EmojiData

    @cached_property
    def painter(self) -> Painter:
        return Painter(self.data.pictures)

    @cached_property
    def kinds(self) -> tuple[int, ...]:
        return tuple(record.index for record in self.data.vocabulary)

    @cached_property
    def names(self) -> dict[int, tuple[Name, ...]]:
        """The nouns of each kind, the label first where it is one; no held-out caption."""
        return {record.index: _nouns(record) for record in self.data.vocabulary}

    @cached_property
    def bare(self) -> dict[int, tuple[Name, ...]]:
        """... without the colour that they begin with: "apple" of "red apple".

        A kind has none where that is another kind's name: "cat" of "black cat".
        """
        owners = {n.one.lower(): kind for kind, names in self.names.items() for n in names}
        found = {}
        for kind, names in self.names.items():
            texts = dict.fromkeys(_without_colour(name.one) for name in names)
            own = [text for text in texts if owners.get(text.lower(), kind) == kind]
            found[kind] = tuple(name_of(text) for text in own) if len(own) == len(texts) else ()
        return found

    @cached_property
    def counted(self) -> tuple[int, ...]:
        """Kinds with a plural."""
        return tuple(kind for kind in self.kinds if any(n.many for n in self.names[kind]))

    @cached_property
    def colourable(self) -> tuple[int, ...]:
        """Kinds that are shown in other colours."""
        return tuple(
            kind
            for kind in self.kinds
            if self.bare[kind] and can_be_coloured(self.data.records[kind].label, self._share(kind))
        )

    def _share(self, kind: int) -> float:
        """Of its main colour, measured on every fourth row and column."""
        return main_colour(np.asarray(self.data.pictures[kind])[::4, ::4]).share

    def colours(self, kind: int) -> list[str]:
        """The colours that a kind may be painted in; what its label says, it has already."""
        own = says_colour(self.data.records[kind].label)
        return [colour for colour in OBJECT_COLOURS if colour != own]

    def name(self, group: Group, dice: Random) -> Name:
        """One of the names that fit."""
        names = self.names[group.kind] if group.colour is None else self.bare[group.kind]
        fitting = [name for name in names if group.number == 1 or name.many]
        return fitting[0] if dice.random() < LABEL else dice.choice(fitting)

    def caption(self, scene: Composition, dice: Random) -> str:
        return caption(scene, [self.name(group, dice) for group in scene.groups], dice)

    def held_out(self, scene: Composition) -> set[str]:
        """Which of pair, colour and number of a scene training never sees."""
        records = self.data.records
        return held_out_parts([(records[g.kind], g.number, g.colour) for g in scene.groups])


def _nouns(record: Record) -> tuple[Name, ...]:
    texts = [caption.text for caption in record.training_captions if "," not in caption.text]
    texts += EVERYDAY.get(record.label, ())
    held_out = record.held_out_caption
    nouns = [
        text
        for text in dict.fromkeys(texts)
        if text.lower() not in NOT_NOUNS
        and len(text.split()) <= LONGEST_NAME
        and not (text != record.label and held_out and alike(text, held_out.text))
    ]
    return tuple(name_of(text) for text in nouns or [record.label])


def _without_colour(name: str) -> str:
    return name.split(" ", 1)[1] if says_colour(name, COLOURS) and " " in name else name


# ------------------------------------------------------------------ tasks


def _single(v: Vocabulary, dice: Random) -> Composition:
    return Composition((Group(dice.choice(v.kinds)),))


def _sized(v: Vocabulary, dice: Random) -> Composition:
    size = dice.choice(("tiny", "small", "small", "big"))
    return Composition((replace(_maybe_coloured(v, dice, 0.2), size=size),))


def _positioned(v: Vocabulary, dice: Random) -> Composition:
    size = dice.choice(("plain", "plain", "plain", "tiny", "small", "small", "big"))
    group = replace(_maybe_coloured(v, dice, 0.2), size=size)
    return Composition((group,), place=dice.choice(PLACES))


def _coloured(v: Vocabulary, dice: Random) -> Composition:
    return Composition((_in_colour(v, dice),))


def _counted(v: Vocabulary, dice: Random) -> Composition:
    return Composition((Group(dice.choice(v.counted), dice.randint(2, MOST)),))


def _counted_in_colour(v: Vocabulary, dice: Random) -> Composition:
    group = _in_colour(v, dice)
    many = [name for name in v.bare[group.kind] if name.many]
    return Composition((replace(group, number=dice.randint(2, MOST) if many else 1),))


def _two(v: Vocabulary, dice: Random) -> Composition:
    """Two kinds; sizes now and then."""
    relation = dice.choice(("and", "and", *HALVES))
    groups = [Group(kind) for kind in dice.sample(v.kinds, 2)]
    if dice.random() < 0.1:
        groups = [replace(g, size=dice.choice(("tiny", "small", "plain", "big"))) for g in groups]
    return Composition(tuple(groups), relation=relation)


def _attributed(v: Vocabulary, dice: Random) -> Composition:
    """Two kinds in two colours."""
    one, other = _in_colour(v, dice), _in_colour(v, dice)
    return Composition((one, other), relation=dice.choice(("and", "and", "and", *HALVES)))


def _one_coloured(v: Vocabulary, dice: Random) -> Composition:
    """Two kinds, one of them in a colour."""
    groups = [_in_colour(v, dice), Group(dice.choice(v.kinds))]
    dice.shuffle(groups)
    return Composition(tuple(groups), relation=dice.choice(("and", *HALVES)))


def _in_front(v: Vocabulary, dice: Random) -> Composition:
    groups = tuple(_maybe_coloured(v, dice, 0.3) for _ in range(2))
    return Composition(groups, relation="in front of")


def _several(v: Vocabulary, dice: Random) -> Composition:
    """Three kinds or more, or two with a number."""
    numbers = dice.choice(
        ((1, 1, 1), (1, 1, 1), (1, 1, 1, 1), (2, 1), (1, 2), (2, 1, 1), (3, 1), (1, 3), (2, 2),
         (3, 2), (2, 3), (4, 1))
    )  # fmt: skip
    groups = []
    for number in numbers:
        group = _maybe_coloured(v, dice, 0.2)
        many = (v.names if group.colour is None else v.bare)[group.kind]
        if number > 1 and not any(name.many for name in many):
            group = Group(dice.choice(v.counted))
        groups.append(replace(group, number=number))
    return Composition(tuple(groups))


def _fading(v: Vocabulary, dice: Random) -> Composition:
    top, bottom = dice.sample(sorted(set(COLOURS) - {"white"}), 2)
    background = Background(top, "white" if dice.random() < 0.5 else bottom)
    return Composition((_maybe_coloured(v, dice, 0.3),), background=background)


def _in_colour(v: Vocabulary, dice: Random) -> Group:
    kind = dice.choice(v.colourable)
    return Group(kind, colour=dice.choice(v.colours(kind)))


def _maybe_coloured(v: Vocabulary, dice: Random, chance: float) -> Group:
    return _in_colour(v, dice) if dice.random() < chance else Group(dice.choice(v.kinds))


TASKS: dict[str, Callable[[Vocabulary, Random], Composition]] = {
    "single": _single, "sized": _sized, "positioned": _positioned, "coloured": _coloured,
    "counted": _counted, "counted in colour": _counted_in_colour, "two": _two,
    "attributed": _attributed, "one coloured": _one_coloured, "in front": _in_front,
    "several": _several, "fading": _fading,
}  # fmt: skip


def draw_scene(
    vocabulary: Vocabulary,
    task: str,
    dice: Random,
    *,
    held_out: frozenset[str] = frozenset(),
    on_white: bool = False,
) -> Composition:
    """A scene of a task with exactly these held-out parts; without any it may be trained on."""
    while True:
        scene = TASKS[task](vocabulary, dice)
        families = [vocabulary.data.records[group.kind].family for group in scene.groups]
        if len(set(families)) == len(families) and vocabulary.held_out(scene) == held_out:
            return scene if on_white else _on_some_background(scene, dice)


def _on_some_background(scene: Composition, dice: Random) -> Composition:
    if scene.background != WHITE or dice.random() >= ON_COLOUR:
        return scene
    taken = {"white", *(group.colour for group in scene.groups)}
    return replace(scene, background=Background(dice.choice(sorted(set(COLOURS) - taken))))


def training_scenes(
    vocabulary: Vocabulary, counts: dict[str, int], *, seed: int, skip: int = 0
) -> Iterator[tuple[Composition, str]]:
    """So many scenes of each task with a caption, in turn; `skip` of each were taken before."""
    for task, count in counts.items():
        for number in range(skip, skip + count):
            dice = Random(f"{seed}/{task}/{number}")
            scene = draw_scene(vocabulary, task, dice)
            yield scene, vocabulary.caption(scene, dice)
