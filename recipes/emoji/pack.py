"""Pack a cache of latents and text states into one small file, to train elsewhere; and unpack it.

    python recipes/emoji/pack.py data/emoji-scenes --to data/emoji-scenes.npz --most 60MiB
    python recipes/emoji/pack.py --unpack data/emoji-scenes.npz --to data/emoji-packed

Numbers are kept in 8 bits: of a latent with one scale a channel, of a token's state, its channels
standardised, with one scale a token. Equal latents and equal tokens are kept once: captions that
begin alike share their first tokens. Where all is larger than `--most`, samples are left out,
evenly over the cache. Both directions print what 8 bits cost.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from opensana.device import format_bytes, parse_bytes
from opensana.errors import DataError, OpensanaError
from opensana.features.latents import Features, Sample, write_features
from opensana.features.texts import write_text
from opensana.files.writing import write_atomic

LEVELS = 127
LEAST = 1e-12
TRIES = 8
MEASURED = 500


def pack(features: Features, samples: Sequence[int]) -> dict[str, np.ndarray]:
    """The arrays of some samples."""
    chosen = [features.sample(index) for index in samples]
    captions = {c: i for i, c in enumerate(dict.fromkeys(c for s in chosen for c in s.captions))}
    latents, places = unique(np.stack([features.latent(index) for index in samples]))
    texts = [features.texts.of(caption) for caption in captions]
    tokens, order = unique(np.concatenate([*texts, features.texts.null]))
    mean, deviation = (x.numpy() for x in features.texts.moments)
    deviation = np.maximum(deviation, LEAST)
    scale = np.abs(latents).astype(np.float32).max(axis=(0, 2, 3), keepdims=True) / LEVELS
    states = (tokens.astype(np.float32) - mean) / deviation
    token_scale = np.maximum(np.abs(states).max(1, keepdims=True) / LEVELS, LEAST)
    described = {
        "keys": features.keys,
        "text_keys": features.texts.keys,
        "captions": [features.caption(caption) for caption in captions],
        "samples": [
            {**asdict(sample), "captions": [captions[c] for c in sample.captions]}
            for sample in chosen
        ],
    }
    return {
        "latents": np.round(latents.astype(np.float32) / np.maximum(scale, LEAST)).astype(np.int8),
        "latent_scale": scale,
        "places": places.astype(np.int32),
        "tokens": np.round(states / token_scale).astype(np.int8),
        "token_scale": token_scale.astype(np.float32),
        "mean": mean,
        "deviation": deviation,
        "order": order.astype(np.int32),
        "lengths": np.array([len(x) for x in (*texts, features.texts.null)], np.int32),
        "described": np.frombuffer(json.dumps(described).encode(), np.uint8),
    }


def unique(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different rows, and where each row is among them."""
    flat = np.ascontiguousarray(rows).reshape(len(rows), -1)
    as_bytes = flat.view(np.dtype((np.void, flat.dtype.itemsize * flat.shape[1])))
    _, first, inverse = np.unique(as_bytes, return_index=True, return_inverse=True)
    return rows[first], inverse.reshape(-1)


def unpacked(packed: Any) -> tuple[np.ndarray, list[np.ndarray], dict[str, Any]]:
    """Latents [M, C, h, w], the states [n, D] of all captions and of the null one, and the rest."""
    latents = packed["latents"].astype(np.float32) * packed["latent_scale"]
    states = packed["tokens"].astype(np.float32) * packed["token_scale"]
    states = states * packed["deviation"] + packed["mean"]
    texts = np.split(states[packed["order"]], np.cumsum(packed["lengths"])[:-1])
    return latents[packed["places"]], texts, json.loads(packed["described"].tobytes())


def write_packed(features: Features, to: Path, most: int) -> int:
    """Write as many samples as fit; returns how many those are."""
    count = len(features)
    for _ in range(TRIES):
        samples = [int(i) for i in np.linspace(0, len(features) - 1, count)]
        arrays = pack(features, samples)
        write_atomic(to, lambda path, arrays=arrays: save(path, arrays))
        size = to.stat().st_size
        if size <= most:
            return count
        count = max(1, int(0.97 * count * most / size))
    to.unlink()
    raise DataError(f"not even {count} samples fit into {format_bytes(most)}; raise --most")


def save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]


def unpack(source: Path, to: Path) -> None:
    """A cache folder as the trainer reads it."""
    with np.load(source, allow_pickle=False) as packed:
        latents, texts, described = unpacked(packed)
    text = to.with_name(to.name + "-text")
    if not text.is_dir():
        with write_text(text, keys=described["text_keys"], null=texts[-1]) as writer:
            writer.add(described["captions"], texts[:-1])
    own = {k: v for k, v in described["keys"].items() if k not in described["text_keys"]}
    with write_features(to, keys={**own, "bits": 8}, text=text) as writer:
        samples = [
            Sample(s["key"], *(tuple(s[name]) for name in ("captions", "scores", "captioners")))
            for s in described["samples"]
        ]
        writer.add(latents, samples)


def errors(features: Features, source: Path) -> dict[str, float]:
    """What 8 bits cost, relative to the deviation of each channel."""
    with np.load(source, allow_pickle=False) as packed:
        latents, texts, described = unpacked(packed)
    known = {features.sample(i).key: i for i in range(len(features))}
    _, deviation = features.texts.moments
    of_latents, of_texts = [], []
    for row in range(0, len(latents), max(1, len(latents) // MEASURED)):
        described_sample = described["samples"][row]
        true = known[described_sample["key"]]
        of_latents.append(latents[row] - features.latent(true).astype(np.float32))
        states = features.texts.of(features.sample(true).captions[0]).astype(np.float32)
        of_texts.append(texts[described_sample["captions"][0]] - states)
    spread = np.array(features.latent_std)[:, None, None]
    return {
        "latents": rms(np.stack(of_latents) / spread),
        "texts": rms(np.concatenate(of_texts) / deviation.numpy()),
    }


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.square(x).mean()))


def main() -> int:
    parser = argparse.ArgumentParser(description="Pack a cache into one small file, or unpack it.")
    parser.add_argument("features", type=Path, nargs="?", help="a cache, to pack it")
    parser.add_argument("--unpack", type=Path, metavar="FILE")
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--most", default="60MiB", help="the size of the packed file")
    arguments = parser.parse_args()
    if (arguments.features is None) == (arguments.unpack is None):
        parser.error("name a cache to pack, or a file to --unpack")
    try:
        if arguments.unpack is not None:
            unpack(arguments.unpack, arguments.to)
            print(f"{arguments.to}: {len(Features.open(arguments.to))} samples")
            return 0
        features = Features.open(arguments.features)
        count = write_packed(features, arguments.to, parse_bytes(arguments.most))
        size = format_bytes(arguments.to.stat().st_size)
        print(f"{arguments.to}: {count} of {len(features)} samples in {size}")
        print("errors in deviations:", errors(features, arguments.to))
    except OpensanaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
