"""Samples a second that training can be fed with: this project against plain `datasets` and PIL.

    python -m benchmarks.loading [--pictures 64] [--batch 16] [--repeats 3]

The data set is a folder of JPEG files of 768 x 576 pixels and its turned shape, made for the run.
Every side gives all of it once, in batches of float32 or uint8 arrays:

    features    latents and text states from the cache, in bucket batches, a caption drawn for each
    pictures    decoded and brought to their bucket, in the threads that `opensana encode` uses
    datasets    `datasets.load_dataset("imagefolder")`, resized and cropped to a square by PIL

and `encode` is the whole way into a new cache, with the encoders of emoji-256. The last line is
JSON.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import disable_progress_bars, load_dataset
from PIL import Image, ImageOps

from benchmarks.timing import machine, medians
from opensana.datasets.record import Source
from opensana.datasets.sources import open_source
from opensana.features.blocks import BlockEncoder, EncodeOptions
from opensana.features.buckets import buckets
from opensana.features.encode import encode
from opensana.features.encoders import Encoders, load_encoders
from opensana.features.fitting import Resized, resized_pictures
from opensana.features.latents import Features
from opensana.pictures.decode import decode
from opensana.train.caption_rule import CaptionRule
from opensana.train.transformer.batches import choose_caption
from opensana.train.transformer.order import BucketOrder

SIZE = 256
SHAPES = ((768, 576), (576, 768))


def main() -> None:
    parser = argparse.ArgumentParser(description="Loading and encoding, samples a second.")
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    disable_progress_bars()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "pictures"
        write_pictures(folder, arguments.pictures)
        source, encoders = open_source(folder), load_encoders("emoji-256")
        cache = Path(name) / "features"
        encoding = encode_into(source, encoders, arguments.workers)
        encoding(cache)
        new = iter(range(arguments.repeats + 1))
        sides: dict[str, Callable[[], object]] = {
            "features": features_side(cache, arguments.batch),
            "pictures": pictures_side(source, arguments.workers),
            "datasets": datasets_side(folder, Path(name) / "hub", arguments.batch),
            "encode": lambda: encoding(Path(name) / str(next(new))),
        }
        seconds = medians(list(sides.values()), arguments.repeats)
    rates = {
        side: round(arguments.pictures / taken, 1)
        for side, taken in zip(sides, seconds, strict=True)
    }
    print(json.dumps({"machine": machine(), "samples_per_second": rates}))


def write_pictures(folder: Path, count: int) -> None:
    """Smooth random pictures with a caption file each."""
    folder.mkdir()
    draw = np.random.default_rng(1)
    for index in range(count):
        coarse = Image.fromarray(draw.integers(0, 256, (24, 24, 3), np.uint8))
        picture = coarse.resize(SHAPES[index % len(SHAPES)], Image.Resampling.BICUBIC)
        picture.save(folder / f"{index:05d}.jpg", quality=90)
        (folder / f"{index:05d}.txt").write_text(f"picture number {index} of many colours")


def features_side(cache: Path, batch: int) -> Callable[[], None]:
    features, rule = Features.open(cache), CaptionRule()
    order = BucketOrder(features.buckets, batch=batch, seed=1)
    steps = len(features) // batch

    def run() -> None:
        for step in range(steps):
            chosen = order(step)
            captions = [choose_caption(features, rule, 1, *visit) for visit in chosen]
            features.batch([sample for _, sample in chosen], captions)

    return run


def pictures_side(source: Source, workers: int) -> Callable[[], int]:
    sizes = buckets(SIZE)

    def run() -> int:
        every = range(len(source))
        items = resized_pictures(source, every, sizes, decode=decode, workers=workers)
        return sum(item.pixels.size for item in items if isinstance(item, Resized))

    return run


def datasets_side(folder: Path, cache: Path, batch: int) -> Callable[[], None]:
    pictures: Any = load_dataset(
        "imagefolder", data_dir=str(folder), split="train", cache_dir=str(cache)
    )

    def run() -> None:
        for rows in pictures.iter(batch_size=batch):
            np.stack([square(image) for image in rows["image"]])

    return run


def square(image: Image.Image) -> np.ndarray:
    fitted = ImageOps.fit(image.convert("RGB"), (SIZE, SIZE), Image.Resampling.BICUBIC)
    return np.asarray(fitted)


def encode_into(source: Source, encoders: Encoders, workers: int) -> Callable[[Path], int]:
    options = EncodeOptions(size=SIZE, threads=workers)

    def run(to: Path) -> int:
        encoder = BlockEncoder(source, encoders, options, decode)
        return encode(encoder, to, report=lambda line: None)

    return run


if __name__ == "__main__":
    main()
