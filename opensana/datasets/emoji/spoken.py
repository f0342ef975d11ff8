"""Training prompts in other languages and in emoji characters; held-out labels are in none."""

from collections import Counter
from collections.abc import Iterator
from random import Random

from opensana.datasets.emoji.compose import COLOURS
from opensana.datasets.emoji.dataset import EmojiData, Record
from opensana.datasets.emoji.generator import Vocabulary
from opensana.datasets.emoji.held_out import is_held_out_colour, is_held_out_language
from opensana.datasets.emoji.languages import (
    CHARACTER,
    LANGUAGES,
    WORDS,
    coloured,
    named,
    on_background,
)
from opensana.datasets.emoji.prompts import Prompt
from opensana.datasets.emoji.scenes import WHITE, Background, Composition, Group

TAGS = 2
"""Of a kind and a language at most."""
LABEL_WEIGHT, NAMED_WEIGHT = 3.0, 2.0


def held_out_labels(data: EmojiData) -> dict[str, list[tuple[Record, str]]]:
    """The labels of each language that are never trained on, with their kinds."""
    return {
        language: [
            (record, data.languages[language][record.hexcode][0])
            for record in data.vocabulary
            if is_held_out_language(record, language) and record.hexcode in data.languages[language]
        ]
        for language in LANGUAGES
    }


def spoken_prompts(data: EmojiData) -> Iterator[tuple[Record, str, list[Prompt]]]:
    """(record, language, prompts) for one emoji on white; the weights sum to one."""
    hidden = _hidden(data)
    for language in LANGUAGES:
        table = data.languages[language]
        labels = Counter(words[0].lower() for words in table.values())
        owners = Counter(tag.lower() for words in table.values() for tag in words[1:])
        for record in data.vocabulary:
            if record.hexcode not in table or is_held_out_language(record, language):
                continue
            label, *tags = table[record.hexcode]
            weights = {label: LABEL_WEIGHT}
            weights.setdefault(named(language, label), NAMED_WEIGHT)
            # Tags that fewest kinds share tell most; another kind's label tells the wrong one.
            free = [tag for tag in tags if not labels[tag.lower()]]
            for tag in sorted(free, key=lambda tag: owners[tag.lower()])[:TAGS]:
                weights.setdefault(tag, 1 / owners[tag.lower()])
            known = {text: w for text, w in weights.items() if text.lower() not in hidden}
            if known:
                yield record, language, _normed(known)
    for record in data.vocabulary:
        characters = data.languages[CHARACTER][record.hexcode]
        yield record, CHARACTER, _normed({text: 1.0 for text in characters if text})


def spoken_scenes(
    vocabulary: Vocabulary, count: int, *, seed: int
) -> Iterator[tuple[Composition, str]]:
    """Single emoji in a colour or on one, in the languages that have words for it."""
    data, hidden = vocabulary.data, _hidden(vocabulary.data)
    done = 0
    while count:
        dice = Random(f"{seed}/spoken/{done}")
        done += 1
        language = dice.choice((*WORDS, CHARACTER))
        painted = language != CHARACTER and dice.random() < 0.5
        kind = dice.choice(vocabulary.colourable if painted else vocabulary.kinds)
        record = data.records[kind]
        words = data.languages[language].get(record.hexcode)
        colour = dice.choice(vocabulary.colours(kind)) if painted else None
        if (
            not words
            or is_held_out_language(record, language)
            or words[0].lower() in hidden
            or (colour is not None and is_held_out_colour(record, colour))
        ):
            continue
        if colour is not None:
            text = coloured(language, words[0], colour, dice)
            yield Composition((Group(kind, colour=colour),), background=WHITE), text
        else:
            background = Background(dice.choice(sorted(set(COLOURS) - {"white"})))
            name = words[0] if dice.random() < 0.5 else named(language, words[0])
            text = on_background(language, name, background, dice)
            yield Composition((Group(kind),), background=background), text
        count -= 1


def _hidden(data: EmojiData) -> set[str]:
    """Held-out labels of all languages: what is one in Spanish may be a word in Italian."""
    return {label.lower() for known in held_out_labels(data).values() for _, label in known}


def _normed(weights: dict[str, float]) -> list[Prompt]:
    total = sum(weights.values())
    return [Prompt(text, weight / total) for text, weight in weights.items()]
