"""Who compresses, the autoencoder or the patches: F32C32 against F8C16 with patches of 4.

    python -m benchmarks.compression [--steps 500] [--emoji 100] [--transformer-steps 600]

Both give 64 tokens at 256 pixels (paper 2.1). Each autoencoder starts from the principal components
of its patches and trains for the same steps on the same crops; then the same small transformer
learns the same emoji from their labels on its latents. Reconstruction on held-out pictures, and how
often a drawn emoji is nearest to the true one. Needs data/emoji and data/emoji-features-text
(recipes/emoji/README.md). The last line is JSON.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.caption_sampling import BATCH, RECIPE, SMALL, drawn, small, trained
from opensana.autoencoder import Autoencoder
from opensana.datasets.emoji.compose import Scene, compose_batch
from opensana.datasets.emoji.dataset import EmojiData, Record
from opensana.evaluate.emoji.reconstruction import evaluate_reconstruction
from opensana.features.encoders import encode_pixels
from opensana.features.latents import Sample, write_features
from opensana.features.texts import Texts
from opensana.metrics.reconstruction import through
from opensana.models.load import load_autoencoder
from opensana.train.recipe import TransformerRecipe, load_recipe
from opensana.train.transformer.task import FlowTask

DATA, TEXT = Path("data/emoji"), Path("data/emoji-features-text")


@dataclass(frozen=True)
class Arm:
    """An autoencoder and the patches that a transformer makes of its latents."""

    compression: int
    channels: int
    patch: int


ARMS = {"F32C32, patch 1": Arm(32, 32, 1), "F8C16, patch 4": Arm(8, 16, 4)}


def run(*command: str | Path) -> None:
    subprocess.run([sys.executable, *map(str, command)], check=True, stdout=subprocess.DEVNULL)


def train_autoencoder(arm: Arm, folder: Path, steps: int) -> float:
    """The documented commands, into folder/scaled; the seconds that training took."""
    code = ("--compression", str(arm.compression), "--channels", str(arm.channels))
    run("recipes/emoji/initialise.py", "--to", folder / "initial", *code)
    own = {
        "initial": folder / "initial",
        "run": folder / "run",
        "steps": steps,
        "samples.every": steps,
    }
    changes = [part for name, value in own.items() for part in ("--set", f"{name}={value}")]
    start = time.perf_counter()
    run("-m", "opensana.train", "recipes/emoji/autoencoder-1-full.toml", *changes)
    seconds = time.perf_counter() - start
    run("recipes/emoji/scale.py", "--from", folder / "run/export", "--to", folder / "scaled")
    return seconds


def train_transformer(arm: Arm, cache: Path, steps: int, folder: Path) -> FlowTask:
    own = [f"data.folder={cache}", f"run={folder}", f"steps={steps}", "compile=false", "batch=32"]
    shape = [f"model.in_channels={arm.channels}", f"model.out_channels={arm.channels}"]
    # The side of the latents, from which positions are counted.
    shape += [f"model.patch_size={arm.patch}", f"model.sample_size={256 // arm.compression}"]
    recipe = load_recipe(RECIPE, [*SMALL, *own, *shape, "data.text_noise=0"])
    assert isinstance(recipe, TransformerRecipe)
    return trained(replace(recipe, initial=None))


def write_cache(
    autoencoder: Autoencoder, records: Sequence[Record], pixels: np.ndarray, to: Path
) -> None:
    """Each emoji on white, with its label alone."""
    ids = {text: index for index, text in enumerate(Texts.open(TEXT).captions)}
    with write_features(to, keys={}, text=TEXT) as writer:
        for start in range(0, len(records), BATCH):
            latents = encode_pixels(autoencoder, pixels[start : start + BATCH])
            part = records[start : start + BATCH]
            writer.add(latents, [Sample(r.hexcode, (ids[r.label],), (1.0,)) for r in part])


def measure(
    arm: Arm, folder: Path, records: Sequence[Record], arguments: argparse.Namespace
) -> dict[str, float]:
    """The figures of one arm."""
    data = EmojiData.open(DATA)
    seconds = train_autoencoder(arm, folder, arguments.steps)
    autoencoder = load_autoencoder(folder / "scaled").float()
    held_out = evaluate_reconstruction(through(autoencoder), data, split="held_out")

    pixels = compose_batch([Scene(emoji=(record.index,)) for record in records], data.pictures)
    write_cache(autoencoder, records, pixels, folder / "cache")
    start = time.perf_counter()
    task = train_transformer(
        arm, folder / "cache", arguments.transformer_steps, folder / "transformer"
    )
    taken = time.perf_counter() - start
    truth = small(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1)
    captions = [task.features.sample(index).captions[0] for index in range(len(records))]
    # The package draws without guidance, too.
    made = drawn(task, captions, autoencoder, guidance=1.0)
    errors = (made[:, None] - truth[None]).square().flatten(2).mean(2)
    right = errors.argmin(1) == torch.arange(len(errors))
    return {
        "held_out_psnr": round(held_out.psnr, 2),
        "held_out_ssim": round(held_out.ssim, 3),
        "numbers_per_token": arm.channels * arm.patch**2,
        "autoencoder_parameters": sum(p.numel() for p in autoencoder.parameters()),
        "autoencoder_seconds": round(seconds),
        "transformer_seconds": round(taken),
        "drawn_nearest_percent": round(100 * float(right.float().mean()), 1),
        "drawn_psnr": round(float(10 * torch.log10(4 / errors.diagonal()).mean()), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="F32C32 against F8C16 with patches of 4.")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--transformer-steps", type=int, default=600)
    parser.add_argument("--emoji", type=int, default=100)
    parser.add_argument("--to", type=Path, default=Path("runs/compression"))
    arguments = parser.parse_args()
    vocabulary = EmojiData.open(DATA).vocabulary
    spaced = np.linspace(0, len(vocabulary) - 1, arguments.emoji).astype(int)
    records = [vocabulary[place] for place in spaced]
    results = {}
    for name, arm in ARMS.items():
        folder = arguments.to / f"F{arm.compression}C{arm.channels}"
        results[name] = {**asdict(arm), **measure(arm, folder, records, arguments)}
        print(name, results[name], flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
