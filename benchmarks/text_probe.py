"""How well a linear classifier understands the words that the emoji model is asked.

    python -m benchmarks.text_probe [--data data/emoji] [--text data/emoji-features-text]
    python -m benchmarks.text_probe --languages --text data/emoji-scenes-text

A ridge regression names the emoji of a white scene's prompt from the text encoder's states, their
mean and the last one, standardised as the transformer standardises them. It is fitted to the
training prompts, weighted as they are, and asked the held-out captions: what the states offer, and
so what a transformer that reads them may reach. The ridge is chosen on keywords of one emoji alone
that are left out of a first fit, not on the held-out captions. With `--languages` it is also asked
the held-out labels of other languages, fitted to English alone and to all languages; the states of
their training labels must be in the text folder. The last line is JSON.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.guidance_sweep import keyword_questions
from benchmarks.timing import machine
from opensana.datasets.emoji.dataset import EmojiData
from opensana.datasets.emoji.languages import CHARACTER
from opensana.datasets.emoji.prompts import keywords_of, prompts_of, scenes_of
from opensana.datasets.emoji.spoken import spoken_prompts
from opensana.evaluate.emoji.languages import spoken_questions
from opensana.features.encoders import valid_states
from opensana.features.texts import Texts
from opensana.text.demo_encoder import gemma3_270m_folder
from opensana.text.encoder import TextEncoder

RIDGES = (0.1, 0.2, 0.4, 0.8, 1.6)
LEFT_OUT = 10
"""One in so many keywords chooses the ridge."""
TOP = 5


@dataclass(frozen=True)
class Words:
    """What the states of N prompts say, [N, 2 D + 1], which emoji each asks for, and its weight."""

    features: np.ndarray
    emoji: np.ndarray
    weights: np.ndarray

    def part(self, chosen: np.ndarray) -> "Words":
        return Words(self.features[chosen], self.emoji[chosen], self.weights[chosen])


def summary(states: np.ndarray, moments: Sequence[np.ndarray]) -> np.ndarray:
    """States [L, D] as one vector [2 D + 1]; the first state is the same for every prompt."""
    mean, deviation = moments
    own = (states[1:].astype(np.float32) - mean) / deviation
    return np.concatenate([own.mean(axis=0), own[-1], [1.0]])


def training_words(data: EmojiData, texts: Texts) -> tuple[Words, np.ndarray]:
    """The prompts of the white scenes, and which of them are keywords of one emoji alone [N]."""
    ids = {caption: index for index, caption in enumerate(texts.captions)}
    moments = [moment.numpy() for moment in texts.moments]
    alone = {question.prompt for question in keyword_questions(data)}
    rows, is_keyword = [], []
    for index, (record, keywords) in enumerate(
        zip(data.vocabulary, keywords_of(data.vocabulary), strict=True)
    ):
        white = scenes_of(record, backgrounds=0)[0]
        for prompt in prompts_of(record, white, keywords=keywords):
            features = summary(texts.of(ids[prompt.text]), moments)
            rows.append((features, index, prompt.weight))
            is_keyword.append(prompt.text in alone)
    features, emoji, weights = zip(*rows, strict=True)
    return Words(np.stack(features), np.array(emoji), np.array(weights)), np.array(is_keyword)


def read(texts: Texts, prompts: Sequence[str]) -> np.ndarray:
    """What the text encoder makes of prompts that have no states yet, [N, 2 D + 1]."""
    encoder = TextEncoder.load(gemma3_270m_folder(), instruction=texts.keys["instruction"])
    moments = [moment.numpy() for moment in texts.moments]
    states = [valid_states(encoder.encode([prompt]))[0] for prompt in prompts]
    return np.stack([summary(one, moments) for one in states])


def held_out_words(data: EmojiData, texts: Texts) -> Words:
    """The held-out captions."""
    asked = [
        (record.held_out_caption.text, index)
        for index, record in enumerate(data.vocabulary)
        if record.held_out_caption
    ]
    prompts, emoji = zip(*asked, strict=True)
    return Words(read(texts, prompts), np.array(emoji), np.ones(len(emoji)))


def spoken_words(data: EmojiData, texts: Texts) -> Words:
    """The training prompts in other languages."""
    ids = {caption: index for index, caption in enumerate(texts.captions)}
    moments = [moment.numpy() for moment in texts.moments]
    numbers = {record.index: number for number, record in enumerate(data.vocabulary)}
    rows = [
        (summary(texts.of(ids[prompt.text]), moments), numbers[record.index], prompt.weight)
        for record, language, prompts in spoken_prompts(data)
        if language != CHARACTER
        for prompt in prompts
    ]
    features, emoji, weights = zip(*rows, strict=True)
    return Words(np.stack(features), np.array(emoji), np.array(weights))


def held_out_spoken(data: EmojiData, texts: Texts) -> dict[str, Words]:
    """The held-out labels of every language."""
    numbers = {record.index: number for number, record in enumerate(data.vocabulary)}
    asked = spoken_questions(data)
    del asked[CHARACTER]
    rows = iter(read(texts, [one.prompt for each in asked.values() for one in each]))
    return {
        language: Words(
            np.stack([next(rows) for _ in each]),
            np.array([numbers[one.record.index] for one in each]),
            np.ones(len(each)),
        )
        for language, each in asked.items()
    }


def ask_languages(data: EmojiData, texts: Texts, english: Words, ridge: float) -> dict[str, Any]:
    """What fits to English alone, and to all languages, make of held-out labels."""
    spoken, asked = spoken_words(data, texts), held_out_spoken(data, texts)
    pairs = zip(vars(english).values(), vars(spoken).values(), strict=True)
    every = Words(*(np.concatenate(pair) for pair in pairs))
    results: dict[str, Any] = {}
    for name, words in (("english", english), ("all languages", every)):
        fitted = fit(words, ridge, emoji=len(data.vocabulary))
        found = {language: right(fitted, labels) for language, labels in asked.items()}
        means = [float(np.mean([one[top] for one in found.values()])) for top in ("top1", "top5")]
        trained = right(fitted, spoken)
        print(
            f"fitted to {name}: held-out labels of other languages "
            f"{means[0]:.0%}, {means[1]:.0%}; prompts of theirs in training {trained['top1']:.0%}",
            flush=True,
        )
        results[name] = {"top1": means[0], "top5": means[1], "trained": trained, "each": found}
    return results


def fit(words: Words, ridge: float, *, emoji: int) -> np.ndarray:
    """Weights [2 D + 1, emoji] of the ridge regression to one-hot answers."""
    weights = np.sqrt(words.weights)[:, None] / np.sqrt(words.weights).sum()
    scaled = (words.features * weights).T
    answers = np.eye(emoji, dtype=np.float32)[words.emoji]
    return np.linalg.solve(
        scaled @ words.features + ridge**2 * np.eye(len(scaled)), scaled @ answers
    )


def right(fitted: np.ndarray, words: Words) -> dict[str, float]:
    """The shares of prompts whose emoji is the first one named, and among the first five."""
    scores = words.features @ fitted
    own = scores[np.arange(len(scores)), words.emoji]
    rank = (scores > own[:, None]).sum(axis=1)
    return {
        "prompts": len(rank),
        "top1": float((rank == 0).mean()),
        "top5": float((rank < TOP).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="A linear classifier of the text states.")
    parser.add_argument("--data", type=Path, default=Path("data/emoji"))
    parser.add_argument("--text", type=Path, default=Path("data/emoji-features-text"))
    parser.add_argument("--languages", action="store_true", help="ask other languages, too")
    arguments = parser.parse_args()
    data, texts = EmojiData.open(arguments.data), Texts.open(arguments.text)
    words, is_keyword = training_words(data, texts)
    emoji = len(data.vocabulary)
    left_out = is_keyword & (np.cumsum(is_keyword) % LEFT_OUT == 0)
    tried = {}
    for ridge in RIDGES:
        fitted = fit(words.part(~left_out), ridge, emoji=emoji)
        tried[ridge] = right(fitted, words.part(left_out))
        print(f"ridge {ridge}: keywords left out {tried[ridge]['top1']:.0%}", flush=True)
    best = max(tried, key=lambda ridge: tried[ridge]["top1"])
    held_out = right(fit(words, best, emoji=emoji), held_out_words(data, texts))
    print(f"ridge {best}: held-out captions {held_out['top1']:.0%}, {held_out['top5']:.0%}")
    results: dict[str, Any] = {
        "ridge": best,
        "keywords_left_out": tried[best],
        "training": right(fit(words, best, emoji=emoji), words),
        "held_out_captions": held_out,
    }
    if arguments.languages:
        results["languages"] = ask_languages(data, texts, words, best)
    print(json.dumps({"machine": machine(), "results": results}))


if __name__ == "__main__":
    main()
