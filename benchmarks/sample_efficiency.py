"""What helps a small Linear DiT to learn from few samples: one change at a time, same seeds.

    python benchmarks/sample_efficiency.py [--steps 200] [--emoji 32]

Trains a transformer of width 128 and depth 4 on the cached features of a few emoji
(data/emoji-features), once for each variant, then draws every emoji from its label and compares
the picture with the true one: PSNR at 64 x 64, and how often the true one is the nearest. The last
line is JSON.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from opensana.autoencoder import Autoencoder
from opensana.features.latents import NULL, Features, Sample, write_features
from opensana.features.texts import write_text
from opensana.flow.guidance import guided
from opensana.flow.noise import noise_for
from opensana.flow.solvers import SOLVERS
from opensana.models.find import find_autoencoder
from opensana.models.load import load_autoencoder
from opensana.train.recipe import TransformerRecipe, load_recipe
from opensana.train.transformer.batches import likeliest
from opensana.train.transformer.task import FlowTask, transformer_task

RECIPE = "recipes/emoji/transformer.toml"
SMALL = (
    "model.num_attention_heads=4",
    "model.cross_attention_dim=128",
    "model.num_cross_attention_heads=2",
    "model.num_layers=4",
    "ema=0.98",
    "samples.prompts=[]",
    "evaluate.pictures=8",
    "compile=false",
)
VARIANTS: dict[str, tuple[str, ...]] = {
    "as in the recipe": (),
    "AdamW 1e-3": ("optimizer.lr=1e-3",),
    "AdamW 4e-3": ("optimizer.lr=4e-3",),
    "Muon 4e-3, AdamW 1e-3 for the rest": (
        "optimizer.name=muon",
        "optimizer.lr=4e-3",
        "optimizer.rest=0.25",
        "optimizer.orthogonal_steps=3",
    ),
    "no warm-up": ("schedule.warmup=1",),
    "logit-normal timesteps": ("flow.density=logit_normal",),
    "shift 1": ("flow.shift=1.0",),
    "shift 6": ("flow.shift=6.0",),
    "captions not standardised": ("standardise_captions=false",),
    "caption norm starts at 0.01": ("caption_norm=0.01",),
    "latents whitened per channel": (),
    "float32": ("dtype=float32",),
}
STEPS, GUIDANCE = 20, 3.0


def subset(source: Features, emoji: int, to: Path, scale: Tensor) -> None:
    """A cache with the scenes of evenly spaced emoji, latents multiplied by `scale` [C]."""
    samples = [source.sample(i) for i in range(len(source))]
    known = list(dict.fromkeys(emoji_of(sample) for sample in samples))
    kept = {known[int(i)] for i in np.linspace(0, len(known) - 1, emoji)}
    chosen = [i for i, sample in enumerate(samples) if emoji_of(sample) in kept]
    captions = sorted({c for i in chosen for c in samples[i].captions})
    place = {caption: row for row, caption in enumerate(captions)}
    keys = {name: source.keys[name] for name in source.texts.keys}
    with write_text(to / "text", keys=keys, null=np.array(source.texts.null)) as texts:
        texts.add([source.caption(c) for c in captions], [source.texts.of(c) for c in captions])
    with write_features(to / "all", keys={}, text=to / "text") as writer:
        for i in chosen:
            ids = tuple(place[c] for c in samples[i].captions)
            latent = torch.from_numpy(np.array(source.latent(i))).float()
            writer.add((latent * scale)[None], [replace(samples[i], captions=ids)])


def emoji_of(sample: Sample) -> str:
    """The first emoji of a sample's key, as recipes/emoji/encode.py writes it."""
    return sample.key.partition("/")[0].partition("+")[0]


def train(recipe: TransformerRecipe) -> tuple[FlowTask, float]:
    """All steps of a recipe; the task and the seconds it took."""
    task, start = transformer_task(recipe), time.process_time()
    for step in range(recipe.steps):
        task.train(step, task.prepare(step))()
    return task, time.process_time() - start


@torch.no_grad()
def judge(task: FlowTask, autoencoder: Autoencoder, scale: Tensor) -> dict[str, float]:
    """Draw each emoji on white from its likeliest caption and compare with the true picture."""
    features = task.features
    firsts: dict[str, int] = {}
    for index in range(len(features)):
        sample = features.sample(index)
        if sample.key.endswith("/white"):
            firsts.setdefault(emoji_of(sample), index)
    white = list(firsts.values())
    prompts = [likeliest(features, task.recipe.data.rule, i) for i in white]
    averaged, texts = task.network.averaged_velocity, features.texts
    wanted, null = (averaged(*texts.batch(captions)) for captions in (prompts, [NULL]))
    velocity = guided(wanted, null, GUIDANCE)
    solver = SOLVERS["flow_dpm"]
    noise = noise_for(range(len(white)), features.latent_shape)
    latents = solver.solve(velocity, noise, solver.sigmas(STEPS, task.recipe.flow.shift))
    truth = torch.from_numpy(np.stack([features.latent(i) for i in white]).astype(np.float32))
    drawn, true = (small_pictures(autoencoder, x / scale) for x in (latents, truth))
    errors = (drawn[:, None] - true[None]).square().flatten(2).mean(2)
    right = (errors.argmin(1) == torch.arange(len(white))).float().mean()
    psnr = 10 * torch.log10(4 / errors.diagonal()).mean()
    return {"psnr": round(float(psnr), 2), "nearest": round(float(right), 3)}


def small_pictures(autoencoder: Autoencoder, latents: Tensor) -> Tensor:
    pixels = torch.cat([autoencoder.decode(x) for x in latents.split(8)])
    return functional.avg_pool2d(pixels.clamp(-1, 1), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description="Sample efficiency of training choices.")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--emoji", type=int, default=32)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--only", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    source = Features.open(load_recipe(RECIPE).data.folder)
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        for index, variant in enumerate(arguments.only):
            whiten = "whitened" in variant
            std = torch.tensor(source.latent_std)[:, None, None]
            scale = 1 / std if whiten else torch.ones_like(std)
            folder = Path(name) / str(index)
            folder.mkdir()
            subset(source, arguments.emoji, folder, scale)
            own = [f"data.folder={folder / 'all'}", f"steps={arguments.steps}"]
            recipe = load_recipe(RECIPE, [*SMALL, *own, *VARIANTS[variant]])
            assert isinstance(recipe, TransformerRecipe)
            task, seconds = train(replace(recipe, run=str(folder / "run")))
            decoder = find_autoencoder(recipe.samples.autoencoder or "")
            autoencoder = load_autoencoder(decoder).float()
            results[variant] = {**judge(task, autoencoder, scale), "seconds": round(seconds)}
            figures = results[variant]
            print(
                f"| {variant} | {figures['psnr']:.2f} | {figures['nearest']:.0%} "
                f"| {figures['seconds']:.0f} |",
                flush=True,
            )
    print(json.dumps(results))


if __name__ == "__main__":
    main()
