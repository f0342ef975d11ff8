"""Cache what the transformer trains on: latents of composed scenes and text states of prompts.

    python recipes/emoji/encode.py --data data/emoji --autoencoder runs/NAME/export \
        --to data/emoji-features

    python recipes/emoji/encode.py --autoencoder runs/NAME/export --sizes 256 512 \
        --backgrounds 2 --pairs 4 --to data/emoji-features-512

The text states are made once, into the folder TO-text; a later run with another autoencoder reuses
them. About half an hour for the text and some minutes for the latents on two cores.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageFilter

from opensana.datasets.emoji.compose import SIZE, Scene, compose_batch
from opensana.datasets.emoji.dataset import EmojiData
from opensana.datasets.emoji.prompts import (
    BACKGROUNDS,
    PAIR_ROUNDS,
    Prompt,
    keywords_of,
    pair_scenes,
    prompts_of,
    scenes_of,
)
from opensana.device import cpu_has_bfloat16
from opensana.errors import DataError, OpensanaError
from opensana.features.encoders import (
    LATENT_VERSION,
    TEXT_VERSION,
    encode_pixels,
    encoder_hash,
    valid_states,
)
from opensana.features.latents import Features, Sample, write_features
from opensana.features.texts import Texts, write_text
from opensana.models.find import find_autoencoder
from opensana.models.load import load_autoencoder
from opensana.text.demo_encoder import SHA256, gemma3_270m_folder
from opensana.text.encoder import TextEncoder
from opensana.text.instruction import KEPT_TOKENS

INSTRUCTION = "diffusers"
TEXT_BATCH = 32
PICTURE_BATCH = 16
# How often a scene of each kind stands in the cache.
COPIES = {"white": 60, "coloured": 2, "pair": 1}

Item = TypeVar("Item")
Described = tuple[Scene, list[Prompt]]


def main() -> int:
    parser = argparse.ArgumentParser(description="Cache latents and text states of emoji scenes.")
    parser.add_argument("--data", type=Path, default=Path("data/emoji"))
    parser.add_argument("--autoencoder", help="a folder or a name; without it only text is made")
    parser.add_argument("--to", type=Path, default=Path("data/emoji-features"))
    parser.add_argument("--text", type=Path, help="the folder of the text states (TO-text)")
    parser.add_argument(
        "--backgrounds", type=int, default=BACKGROUNDS, help="coloured scenes of each emoji"
    )
    parser.add_argument("--edges", action="store_true", help="cache edges of the scenes instead")
    parser.add_argument(
        "--pairs", type=int, default=PAIR_ROUNDS, help="scenes of each emoji with another"
    )
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[SIZE], help="sides of the pictures in pixels"
    )
    for kind, copies in COPIES.items():
        parser.add_argument(
            f"--{kind}-copies", type=int, default=copies, help=f"how often a scene ({kind}) counts"
        )
    arguments = parser.parse_args()
    text = arguments.text or arguments.to.with_name(arguments.to.name + "-text")
    try:
        data = EmojiData.open(arguments.data)
        scenes = described(data, backgrounds=arguments.backgrounds)
        scenes += pair_scenes(data.vocabulary, rounds=arguments.pairs)
        encode_text(text, {prompt.text for _, prompts in scenes for prompt in prompts})
        if arguments.autoencoder is not None:
            encode_latents(arguments, scenes, text)
    except OpensanaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def described(data: EmojiData, *, backgrounds: int) -> list[Described]:
    """Every scene of one emoji of the vocabulary, with its prompts."""
    return [
        (scene, prompts_of(record, scene, keywords=keywords))
        for record, keywords in zip(data.vocabulary, keywords_of(data.vocabulary), strict=True)
        for scene in scenes_of(record, backgrounds=backgrounds)
    ]


def encode_text(folder: Path, texts: Iterable[str]) -> None:
    """Write the text folder; states that are there with the same keys are not made again."""
    source = gemma3_270m_folder()
    keys = text_keys()
    known = known_states(folder, keys)
    # Prompts of one length make batches without padding.
    missing = sorted(set(texts) - set(known), key=lambda text: (len(text), text))
    print(f"text states: {len(known)} known, {len(missing)} to make", file=sys.stderr)
    if not missing:
        return
    # Half the time where the device multiplies bfloat16; its rounding is far below `text_noise`.
    dtype = torch.bfloat16 if cpu_has_bfloat16() else torch.float32
    encoder = TextEncoder.load(source, dtype=dtype, instruction=INSTRUCTION)
    null = valid_states(encoder.encode_plain([""]))[0]
    with write_text(folder, keys=keys, null=null) as writer:
        writer.add(list(known), known.values())
        for batch in progress(missing, TEXT_BATCH, what="prompts"):
            writer.add(batch, valid_states(encoder.encode(batch)))


def known_states(folder: Path, keys: dict[str, object]) -> dict[str, np.ndarray]:
    """The states of each prompt in a text folder, if it is there with these keys."""
    if not (folder / "manifest.json").exists():
        return {}
    try:
        texts = Texts.open(folder, expect=keys)
    except DataError as error:
        print(f"text states are made anew: {error}", file=sys.stderr)
        return {}
    return {caption: texts.of(index) for index, caption in enumerate(texts.captions)}


def text_keys() -> dict[str, object]:
    return {
        "text_encoder": "gemma-3-270m",
        "text_encoder_hash": SHA256,
        "instruction": INSTRUCTION,
        "max_tokens": KEPT_TOKENS,
        "text_version": TEXT_VERSION,
    }


def encode_latents(arguments: argparse.Namespace, scenes: Sequence[Described], text: Path) -> None:
    """Write the cache: the latents of all scenes, and the captions that describe them."""
    data = EmojiData.open(arguments.data)
    model = load_autoencoder(find_autoencoder(arguments.autoencoder)).float()
    ids = {caption: index for index, caption in enumerate(Texts.open(text).captions)}
    keys = {
        "autoencoder": encoder_hash(model),
        "resolution": max(arguments.sizes),
        "pictures": data.manifest["sha256"]["pictures.npy"],
        "latent_version": LATENT_VERSION,
        "edges": arguments.edges,
    }
    with write_features(arguments.to, keys=keys, text=text) as writer:
        for size, batch in sized(scenes, arguments.sizes):
            pixels = compose_batch([scene for scene, _ in batch], data.pictures, size=size)
            if arguments.edges:
                pixels = edges(pixels)
            samples = [sample(scene, prompts, ids) for scene, prompts in batch]
            for latent, entry, described in zip(
                encode_pixels(model, pixels), samples, batch, strict=True
            ):
                count = getattr(arguments, f"{kind_of(described[0])}_copies")
                writer.add(np.stack([latent] * count), [entry] * count)
    report(arguments.to)


def sized(
    scenes: Sequence[Described], sizes: Sequence[int]
) -> Iterator[tuple[int, Sequence[Described]]]:
    """Batches of all scenes at each size in pixels."""
    for size in sizes:
        for batch in progress(scenes, PICTURE_BATCH, what=f"scenes of {size} pixels"):
            yield size, batch


def kind_of(scene: Scene) -> str:
    """Its name among COPIES."""
    if len(scene.emoji) > 1:
        return "pair"
    return "white" if scene.background == "white" else "coloured"


def edges(pixels: np.ndarray) -> np.ndarray:
    """Pictures [B, H, W, 3] as white edges on black: the conditions of a ControlNet."""
    maps = [Image.fromarray(one).convert("L").filter(ImageFilter.FIND_EDGES) for one in pixels]
    return np.stack([np.asarray(one.convert("RGB")) for one in maps])


def sample(scene: Scene, prompts: Sequence[Prompt], ids: dict[str, int]) -> Sample:
    """The scores are the prompts' weights: the recipe draws by them as they are (power, 1, 0)."""
    return Sample(
        key=key_of(scene),
        captions=tuple(ids[prompt.text] for prompt in prompts),
        scores=tuple(prompt.weight for prompt in prompts),
        captioners=("emojibase",) * len(prompts),
    )


def key_of(scene: Scene) -> str:
    """`3/light blue`, `3 left of 14/white`: the emoji's numbers, how they stand, the background."""
    return f"{f' {scene.position} '.join(map(str, scene.emoji))}/{scene.background}"


def report(folder: Path) -> None:
    features = Features.open(folder)
    figures = {
        "samples": len(features),
        "prompts": len(features.texts.captions),
        "states": len(features.texts.states),
        "latent_shape": features.latent_shape,
        "latent_std": round(float(np.mean(features.latent_std)), 4),
    }
    print(json.dumps(figures))


def progress(items: Sequence[Item], batch: int, *, what: str) -> Iterator[Sequence[Item]]:
    """Batches of items, with the time left on stderr every few seconds."""
    start = said = time.monotonic()
    for first in range(0, len(items), batch):
        yield items[first : first + batch]
        done, now = min(first + batch, len(items)), time.monotonic()
        if now - said > 10 or done == len(items):
            left = (now - start) / done * (len(items) - done)
            print(f"{done}/{len(items)} {what}, {left:.0f} s left", file=sys.stderr, flush=True)
            said = now


if __name__ == "__main__":
    sys.exit(main())
