"""Cache what version 5 trains on: scenes of several objects, and captions in eleven languages.

    python recipes/emoji/encode_scenes.py --autoencoder emoji-256 --to data/emoji-scenes

With `--latents` of an earlier cache, only new pictures are encoded; texts that are known are never
made again. Two cores make 50 to 160 text states and 50 to 95 latents a second: 59,000 captions and
35,000 pictures take 15 to 30 minutes.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from encode import (
    PICTURE_BATCH,
    described,
    encode_text,
    key_of,
    kind_of,
    progress,
    report,
)

from opensana.datasets.emoji.compose import Scene, compose
from opensana.datasets.emoji.dataset import EmojiData
from opensana.datasets.emoji.generator import Vocabulary, training_scenes
from opensana.datasets.emoji.prompts import BACKGROUNDS, PAIR_ROUNDS, Prompt, pair_scenes
from opensana.datasets.emoji.scenes import MOST, PLACES, Composition, Group
from opensana.datasets.emoji.spoken import spoken_prompts, spoken_scenes
from opensana.errors import OpensanaError
from opensana.features.encoders import LATENT_VERSION, encode_pixels, encoder_hash
from opensana.features.latents import Features, Sample, write_features
from opensana.features.texts import Texts
from opensana.models.find import find_autoencoder
from opensana.models.load import load_autoencoder

SEED = 5
SHARES = {
    "sized": 0.05, "positioned": 0.09, "coloured": 0.12, "counted": 0.20, "counted in colour": 0.08,
    "two": 0.10, "attributed": 0.16, "one coloured": 0.05, "in front": 0.04, "several": 0.08,
    "fading": 0.03,
}  # fmt: skip
"""Of the tasks among the scenes."""
# How often an entry counts, in the last run's last steps.
COPIES = {
    "white": 4, "coloured": 6, "pair": 1, "spoken": 4, "emoji": 8,
    "scene": 1, "sized": 2, "attributed": 2, "five": 8, "small": 10,
}  # fmt: skip
TEXT_PART = 8000
ON_A_DIE = ("center", *(place for place in PLACES if "corner" in place))
SPOKEN = 3000
"""Scenes with a colour or a ground in another language."""


@dataclass(frozen=True)
class Entry:
    """A picture with its prompts, and how often it counts."""

    picture: Scene | Composition
    prompts: list[Prompt]
    copies: int

    @property
    def key(self) -> str:
        return key_of(self.picture) if isinstance(self.picture, Scene) else self.picture.key


def main() -> int:
    parser = argparse.ArgumentParser(description="Cache latents and text states of scenes.")
    parser.add_argument("--data", type=Path, default=Path("data/emoji"))
    parser.add_argument("--autoencoder", required=True)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--text", type=Path, default=Path("data/emoji-scenes-text"))
    parser.add_argument("--latents", type=Path, help="an earlier cache; its latents are reused")
    parser.add_argument("--scenes", type=int, default=24000)
    arguments = parser.parse_args()
    try:
        data = EmojiData.open(arguments.data)
        vocabulary = Vocabulary(data)
        entries = list(all_entries(vocabulary, arguments.scenes))
        texts = list({prompt.text: None for entry in entries for prompt in entry.prompts})
        # In parts, each of which is kept if the next is interrupted.
        for first in range(0, len(texts), TEXT_PART):
            encode_text(arguments.text, texts[first : first + TEXT_PART])
        encode_latents(arguments, vocabulary, entries)
    except OpensanaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def all_entries(vocabulary: Vocabulary, scenes: int) -> Iterator[Entry]:
    """What version 4 trained on, the other languages, and new scenes."""
    data = vocabulary.data
    for scene, prompts in described(data, backgrounds=BACKGROUNDS):
        yield Entry(scene, prompts, COPIES[kind_of(scene)])
    for scene, prompts in pair_scenes(data.vocabulary, rounds=PAIR_ROUNDS):
        yield Entry(scene, prompts, COPIES["pair"])
    for record, language, prompts in spoken_prompts(data):
        copies = COPIES.get(language, COPIES["spoken"])
        yield Entry(Composition((Group(record.index),)), prompts, copies)
    for scene, text in spoken_scenes(vocabulary, SPOKEN, seed=SEED):
        yield Entry(scene, [Prompt(text, 1.0)], 1)
    for scene, text in small_scenes(vocabulary):
        yield Entry(scene, [Prompt(text, 1.0)], COPIES["small"])
    for scene, text in training_scenes(vocabulary, counts(scenes), seed=SEED):
        yield Entry(scene, [Prompt(text, 1.0)], COPIES[weight_of(scene)])


def small_scenes(vocabulary: Vocabulary) -> Iterator[tuple[Composition, str]]:
    """Every kind as large as one of five, in the places where five of a kind stand."""
    for kind in vocabulary.kinds:
        for place in ON_A_DIE:
            scene = Composition((Group(kind, size="small"),), place=place)
            yield scene, vocabulary.caption(scene, Random(f"{SEED}/{scene.key}"))


def counts(scenes: int) -> dict[str, int]:
    """How many scenes of each task."""
    return {task: round(share * scenes) for task, share in SHARES.items()}


def weight_of(scene: Composition) -> str:
    """What is learnt last counts more: two kinds in two colours, and sizes that few scenes have."""
    if scene.total == MOST:
        return "five"
    if any(group.size in ("tiny", "small") for group in scene.groups):
        return "sized"
    several = len(scene.groups) > 1
    return "attributed" if several and all(group.colour for group in scene.groups) else "scene"


def encode_latents(
    arguments: argparse.Namespace, vocabulary: Vocabulary, entries: Sequence[Entry]
) -> None:
    """Write the cache; a picture with several entries is encoded once."""
    model = load_autoencoder(find_autoencoder(arguments.autoencoder)).float()
    ids = {caption: index for index, caption in enumerate(Texts.open(arguments.text).captions)}
    keys = {
        "autoencoder": encoder_hash(model),
        "resolution": 256,
        "pictures": vocabulary.data.manifest["sha256"]["pictures.npy"],
        "latent_version": LATENT_VERSION,
        "edges": False,
    }
    known = known_latents(arguments.latents, keys)
    missing = {entry.key: entry.picture for entry in entries if entry.key not in known}
    for batch in progress(list(missing.items()), PICTURE_BATCH, what="scenes"):
        pixels = np.stack([drawn(vocabulary, picture) for _, picture in batch])
        for (key, _), latent in zip(batch, encode_pixels(model, pixels), strict=True):
            known[key] = latent.astype(np.float16)
    with write_features(arguments.to, keys=keys, text=arguments.text) as writer:
        for entry in entries:
            latents = np.stack([known[entry.key]] * entry.copies)
            writer.add(latents, [sample(entry, ids)] * entry.copies)
    report(arguments.to)


def known_latents(folder: Path | None, keys: dict[str, object]) -> dict[str, np.ndarray]:
    """Key -> latent of an earlier cache of the same autoencoder and pictures."""
    if folder is None:
        return {}
    features = Features.open(folder, expect=keys)
    return {features.sample(row).key: features.latent(row) for row in range(len(features))}


def drawn(vocabulary: Vocabulary, picture: Scene | Composition) -> np.ndarray:
    if isinstance(picture, Scene):
        return compose(picture, vocabulary.data.pictures)
    return vocabulary.painter.draw(picture)


def sample(entry: Entry, ids: dict[str, int]) -> Sample:
    return Sample(
        key=entry.key,
        captions=tuple(ids[prompt.text] for prompt in entry.prompts),
        scores=tuple(prompt.weight for prompt in entry.prompts),
        captioners=("emojibase",) * len(entry.prompts),
    )


if __name__ == "__main__":
    sys.exit(main())
