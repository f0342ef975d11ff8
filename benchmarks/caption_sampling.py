"""Single caption, several at random, several by CLIP score: the paper's Table 4 at small scale.

    python -m benchmarks.caption_sampling [--to benchmarks/caption_sampling.md]

Trains the same small transformer on the same emoji for the same steps and seeds; only the caption
that a step reads differs. Every emoji has a caption that no arm trains on; pictures are drawn from
labels and from those. Judged by the small CLIP, by the nearest true emoji at 64 x 64 pixels, and by
the loss on held-out captions at fixed noise. Needs data/emoji, data/emoji-captions and
data/emoji-labels (recipes/emoji/README.md). The last line is JSON.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.timing import machine
from opensana.autoencoder import Autoencoder
from opensana.datasets.emoji.compose import Scene, compose_batch
from opensana.datasets.emoji.dataset import EmojiData, Record
from opensana.features.encoders import encode_pixels
from opensana.features.latents import NULL, Sample, write_features
from opensana.features.texts import Texts
from opensana.flow.guidance import guided
from opensana.flow.loss import flow_matching_loss
from opensana.flow.noise import noise_for
from opensana.flow.solvers import SOLVERS
from opensana.label.labels import Labels
from opensana.metrics.small_clip import Clip, load_clip
from opensana.models.find import find_autoencoder
from opensana.models.load import load_autoencoder
from opensana.train.recipe import TransformerRecipe, load_recipe
from opensana.train.transformer.task import FlowTask, transformer_task

RECIPE = "recipes/emoji/transformer.toml"
SMALL = (
    "model.num_attention_heads=6",
    "model.cross_attention_dim=192",
    "model.num_cross_attention_heads=3",
    "model.num_layers=4",
    "ema=0.99",
    "schedule.warmup=50",
    "samples.prompts=[]",
    "evaluate.pictures=8",
)
STEPS, GUIDANCE, BATCH, SIDE = 20, 3.0, 16, 64
LOSS_NOISES = 4


@dataclass(frozen=True)
class Arm:
    """Which of a picture's captions training may read, and how it chooses."""

    captions: int | None
    sampling: str


ARMS = {
    "single caption": Arm(1, "uniform"),
    "several, at random": Arm(None, "uniform"),
    "several, by CLIP score": Arm(None, "softmax"),
}


@dataclass(frozen=True)
class Known:
    """The emoji of the experiment: captions as rows of `texts`, and the true pictures."""

    records: Sequence[Record]
    texts: Texts
    captions: Sequence[tuple[int, ...]]
    scores: Sequence[tuple[float, ...]]
    held_out: Sequence[int]
    pixels: Tensor
    """[K, 3, 64, 64] in -1..1."""
    latents: np.ndarray

    @property
    def labels(self) -> list[int]:
        return [captions[0] for captions in self.captions]


def gather(arguments: argparse.Namespace, autoencoder: Autoencoder) -> Known:
    """Evenly spaced emoji among those with a held-out caption, with their labelled captions."""
    data, labels = EmojiData.open(arguments.data), Labels.open(arguments.labels)
    texts = Texts.open(arguments.text)
    ids = {text: index for index, text in enumerate(texts.captions)}
    eligible = [record for record in data.vocabulary if record.held_out_caption]
    spaced = np.linspace(0, len(eligible) - 1, min(arguments.emoji, len(eligible))).astype(int)
    records = [eligible[place] for place in spaced]
    captions = [
        sorted(labels.captions(record.hexcode), key=lambda c: c.text != record.label)
        for record in records
    ]
    pixels = compose_batch([Scene(emoji=(record.index,)) for record in records], data.pictures)
    parts = [pixels[i : i + BATCH] for i in range(0, len(pixels), BATCH)]
    held_out = [record.held_out_caption for record in records]
    return Known(
        records=records,
        texts=texts,
        captions=[tuple(ids[c.text] for c in found) for found in captions],
        scores=[tuple(float(c.score or 0) for c in found) for found in captions],
        held_out=[ids[caption.text] for caption in held_out if caption],
        pixels=small(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1),
        latents=np.concatenate([encode_pixels(autoencoder, part) for part in parts]),
    )


def write_cache(known: Known, text: Path, to: Path, captions: int | None) -> None:
    """The features of all emoji with the first `captions` of each, or all."""
    with write_features(to, keys={}, text=text) as writer:
        for record, ids, scores, latent in zip(
            known.records, known.captions, known.scores, known.latents, strict=True
        ):
            sample = Sample(record.hexcode, ids[:captions], scores[:captions])
            writer.add(latent[None], [sample])


def trained(recipe: TransformerRecipe) -> FlowTask:
    task = transformer_task(recipe)
    for step in range(recipe.steps):
        task.train(step, task.prepare(step))()
    return task


@torch.no_grad()
def judge(task: FlowTask, known: Known, autoencoder: Autoencoder, clip: Clip) -> dict:
    """The figures of one run: CLIP score, share of right pictures, loss, by kind of caption."""
    figures = {}
    for name, captions in {"label": known.labels, "held_out": known.held_out}.items():
        pixels = drawn(task, captions, autoencoder)
        errors = (pixels[:, None] - known.pixels[None]).square().flatten(2).mean(2)
        right = errors.argmin(1) == torch.arange(len(pixels))
        figures[f"clip_{name}"] = clip_score(clip, pixels, known.texts, captions)
        figures[f"nearest_{name}"] = 100 * float(right.float().mean())
        figures[f"loss_{name}"] = fixed_loss(task, known, captions)
    return figures


@torch.no_grad()
def drawn(
    task: FlowTask,
    captions: Sequence[int],
    autoencoder: Autoencoder,
    *,
    guidance: float = GUIDANCE,
) -> Tensor:
    """Pictures [K, 3, 64, 64] of captions, one fixed noise each."""
    texts = task.features.texts
    wanted, null = (task.network.averaged_velocity(*texts.batch(c)) for c in (captions, [NULL]))
    solver = SOLVERS["flow_dpm"]
    noise = noise_for(range(len(captions)), task.features.latent_shape)
    sigmas = solver.sigmas(STEPS, task.recipe.flow.shift)
    latents = solver.solve(guided(wanted, null, guidance), noise, sigmas)
    return torch.cat([small(autoencoder.decode(part)) for part in latents.split(BATCH)])


def small(pixels: Tensor) -> Tensor:
    return functional.adaptive_avg_pool2d(pixels.clamp(-1, 1), SIDE)


@torch.no_grad()
def clip_score(clip: Clip, pixels: Tensor, texts: Texts, captions: Sequence[int]) -> float:
    """100 times the mean cosine of pictures and their captions."""
    embedded = clip.embed_texts(*texts.batch(captions))
    return 100 * float((clip.embed_images(pixels) * embedded).sum(1).mean())


def fixed_loss(task: FlowTask, known: Known, captions: Sequence[int]) -> float:
    """The loss at evenly spaced noise levels, with the same noises for every run."""
    count, losses = len(captions), []
    velocity = task.network.averaged_velocity(*task.features.texts.batch(captions))
    latents = torch.from_numpy(known.latents).float()
    places = torch.arange(count).float()
    for turn in range(LOSS_NOISES):
        sigma = ((places * 0.618034 + turn / LOSS_NOISES) % 1).clamp(0.02, 0.98)
        noise = noise_for(range(turn * count, (turn + 1) * count), task.features.latent_shape)
        losses.append(flow_matching_loss(velocity, latents, noise, sigma).mean())
    return float(torch.stack(losses).mean())


def summary(runs: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, float]]:
    """Mean and standard error of each figure."""
    columns = {name: [run[name] for run in runs] for name in runs[0]}
    return {
        name: (
            statistics.fmean(values),
            statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan"),
        )
        for name, values in columns.items()
    }


COLUMNS = {
    "clip_held_out": ("CLIP, held-out", ".2f"),
    "clip_label": ("CLIP, label", ".2f"),
    "nearest_held_out": ("right, held-out (%)", ".1f"),
    "nearest_label": ("right, label (%)", ".1f"),
    "loss_held_out": ("loss, held-out", ".4f"),
    "loss_label": ("loss, label", ".4f"),
}


def table(results: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Markdown: one row an arm, mean ± standard error."""
    titles = [title for title, _ in COLUMNS.values()]
    lines = [f"| captions | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
    for arm, runs in results.items():
        found = summary(runs)
        cells = (
            f"{found[name][0]:{form}} ± {found[name][1]:{form}}"
            for name, (_, form) in COLUMNS.items()
        )
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def report(arguments: argparse.Namespace, known: Known, clip: Clip, results: Mapping) -> str:
    """The dated page of an experiment."""
    where = machine()
    counts = [len(captions) for captions in known.captions]
    true = {
        name: clip_score(clip, known.pixels, known.texts, captions)
        for name, captions in {"label": known.labels, "held-out": known.held_out}.items()
    }
    return f"""# Which caption a step reads ({where["date"]})

The paper's Table 4 at small scale: {len(known.records)} emoji, {arguments.steps} steps of a batch
of {arguments.batch}, seeds {", ".join(map(str, arguments.seeds))}; mean ± standard error.
Each emoji has {min(counts)} to {max(counts)} captions, {statistics.fmean(counts):.2f} in the mean,
and one more that no arm trains on. A single caption is the label; by CLIP score they are drawn
from softmax(score / {arguments.temperature:g}); a picture's best and worst lie {spread(known):.1f}
apart in the mean.
The small CLIP gives the true pictures {true["label"]:.2f} with their labels and
{true["held-out"]:.2f} with the held-out captions; "right" is the share of drawn pictures whose
nearest true emoji is the one asked for.

{table(results)}

{where["cpu"]}, {where["threads"]} threads, torch {where["torch"]};
autoencoder `{arguments.autoencoder}`, `python -m benchmarks.caption_sampling`.
"""


def spread(known: Known) -> float:
    """The mean over pictures of the largest less the smallest score."""
    return statistics.fmean(max(scores) - min(scores) for scores in known.scores)


def main() -> None:
    parser = argparse.ArgumentParser(description="Which caption a step reads: Table 4.")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--emoji", type=int, default=100)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--data", type=Path, default=Path("data/emoji"))
    parser.add_argument("--labels", type=Path, default=Path("data/emoji-labels"))
    parser.add_argument("--text", type=Path, default=Path("data/emoji-captions"))
    parser.add_argument("--clip", type=Path, default=Path("recipes/emoji/clip"))
    parser.add_argument("--autoencoder", default="emoji-256")
    parser.add_argument("--to", type=Path, help="a Markdown file for the results")
    arguments = parser.parse_args()
    autoencoder, clip = (
        load_autoencoder(find_autoencoder(arguments.autoencoder)).float(),
        load_clip(arguments.clip),
    )
    known = gather(arguments, autoencoder)
    results: dict[str, list[dict[str, float]]] = {name: [] for name in ARMS}
    with tempfile.TemporaryDirectory() as folder:
        caches = {arm.captions: Path(folder) / str(arm.captions) for arm in ARMS.values()}
        for captions, cache in caches.items():
            write_cache(known, arguments.text, cache, captions)
        for seed in arguments.seeds:
            for name, arm in ARMS.items():
                own = [f"data.folder={caches[arm.captions]}", f"data.sampling={arm.sampling}"]
                own += [f"data.temperature={arguments.temperature}", f"seed={seed}"]
                own += [f"steps={arguments.steps}", f"batch={arguments.batch}"]
                own += [f"compile={str(arguments.compile).lower()}", f"run={folder}/run"]
                recipe, start = load_recipe(RECIPE, [*SMALL, *own]), time.perf_counter()
                assert isinstance(recipe, TransformerRecipe)
                task = trained(replace(recipe, initial=None))
                taken = time.perf_counter() - start
                figures = judge(task, known, autoencoder, clip)
                results[name].append(figures)
                shown = ", ".join(f"{key} {value:.4g}" for key, value in figures.items())
                print(f"{name}, seed {seed}: {taken:.0f} s; {shown}", flush=True)
    page = report(arguments, known, clip, results)
    print(page)
    if arguments.to is not None:
        arguments.to.write_text(page, encoding="utf-8")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
