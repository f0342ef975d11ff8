"""How near a picture is to the exact answer of the flow, by solver and number of steps.

    python -m benchmarks.solvers [--model emoji-256] [--prompts 16] [--plot FILE.png]
        [--strip FILE.png]

Same prompts and noise for all, at the shift and guidance of the model; the answer is flow_dpm's in
500 steps. Latents are compared by the length of the difference over that of the answer, pictures by
PSNR in dB, both means over the prompts. 500 steps of each are a row too: the two walk slightly
different noise levels, and this is how far apart they end. The strip has the first prompts, a row a
solver, 500 steps last. The last line is JSON.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from benchmarks.timing import machine
from opensana.drawing.job import Job
from opensana.drawing.solving import encode, job_noises, solve
from opensana.flow.solvers import SOLVERS
from opensana.metrics.reconstruction import decibels
from opensana.pictures.pixels import to_images
from opensana.pictures.sheet import contact_sheet
from opensana.pipeline import Sana
from opensana.request import Request, SolverName
from opensana.train.monitor.plot import plot

STEPS = (4, 6, 8, 10, 14, 20, 28, 50)
EXACT, EXACT_SOLVER = 500, "flow_dpm"
PROMPTS = (
    "a red apple",
    "a sunflower on a blue background",
    "a cat face left of a chicken",
    "a rocket",
    "a robot right of a rocket",
    "a grinning face",
    "a slice of pizza",
    "a rocket below a dragon face",
    "an octopus",
    "a sailboat on a pink background",
    "a castle",
    "a guitar",
    "a penguin above a banana",
    "a light bulb",
    "a hot pepper on a purple background",
    "a robot left of a hot pepper on a pink background",
)
SHOWN, SIDE = 4, 144

Figures = dict[str, dict[int, dict[str, float]]]
"""Solver, steps, figure."""


@dataclass(frozen=True)
class Drawn:
    """Latents [B, C, h, w] and their pixels [B, 3, H, W] in -1..1."""

    latents: Tensor
    pixels: Tensor


class Drawer:
    """Draws the same prompts from the same noise in different ways."""

    def __init__(self, sana: Sana, prompts: Sequence[str]) -> None:
        self.sana, self.prompts = sana, prompts
        self.texts = encode(sana, self.job(EXACT_SOLVER, EXACT), prompts)

    def job(self, solver: str, steps: int) -> Job:
        name = cast(SolverName, solver)
        return self.sana.job(Request(self.prompts[0], seed=0, steps=steps, solver=name))

    def __call__(self, solver: str, steps: int) -> Drawn:
        job = self.job(solver, steps)
        noises = job_noises(self.sana, job, range(len(self.prompts)))
        latents = solve(self.sana, job, self.texts, noises)
        autoencoder = self.sana.autoencoder
        return Drawn(latents, autoencoder.decode(latents.to(autoencoder.dtype)).float())


def compare(drawn: Drawn, exact: Drawn) -> dict[str, float]:
    """Relative distance of the latents, and PSNR of the pictures."""
    apart = (drawn.latents - exact.latents).flatten(1).norm(dim=1)
    relative = apart / exact.latents.flatten(1).norm(dim=1)
    first, second = (one.pixels.clamp(-1, 1) / 2 for one in (drawn, exact))
    errors = (first - second).square().flatten(1).mean(dim=1).tolist()
    psnr = sum(decibels(error) for error in errors) / len(errors)
    return {"latent": round(float(relative.mean()), 5), "psnr": round(psnr, 2)}


def rows(figures: Figures, steps: Sequence[int]) -> Iterator[str]:
    """A Markdown table."""
    yield "| steps | " + " | ".join(f"{name}: latent | PSNR, dB" for name in figures) + " |"
    yield "|---" * (1 + 2 * len(figures)) + "|"
    for count in steps:
        cells = [
            f"{own[count]['latent']:.4f} | {own[count]['psnr']:.1f}" for own in figures.values()
        ]
        yield f"| {count} | " + " | ".join(cells) + " |"


def save_strip(
    path: Path, drawn: Mapping[tuple[str, int], Drawn], prompts: Sequence[str], steps: Sequence[int]
) -> None:
    """A row for each prompt and solver, fewest steps first; at the end its own exact answer."""
    pictures, names = [], []
    for index, prompt in enumerate(prompts[:SHOWN]):
        for solver in SOLVERS:
            row = [drawn[solver, count].pixels[index] for count in steps]
            pictures += to_images(torch.stack(row))
            names += [f"{solver}, {count}" for count in steps[:-1]] + [prompt]
    contact_sheet(pictures, names, columns=len(steps), side=SIDE).save(path, format="PNG")


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description="Distance to the exact flow by solver and steps.")
    parser.add_argument("--model", default="emoji-256")
    parser.add_argument("--prompts", type=int, default=len(PROMPTS))
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    parser.add_argument("--exact", type=int, default=EXACT, help="steps of the reference")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--strip", type=Path)
    options = parser.parse_args()
    prompts = PROMPTS[: options.prompts]
    draw = Drawer(Sana.load(options.model), prompts)
    exact = draw(EXACT_SOLVER, options.exact)
    drawn = {(EXACT_SOLVER, options.exact): exact}
    figures: Figures = {name: {} for name in SOLVERS}
    counts = [*options.steps, options.exact]
    for solver in SOLVERS:
        for steps in counts:
            if (solver, steps) not in drawn:
                drawn[solver, steps] = draw(solver, steps)
            figures[solver][steps] = compare(drawn[solver, steps], exact)
    print("\n".join(rows(figures, counts)))
    if options.plot is not None:
        curves = {
            name: [(float(steps), own[steps]["latent"]) for steps in options.steps]
            for name, own in figures.items()
        }
        label = f"distance of the latent to that of {options.exact} steps, relative"
        plot(options.plot, curves, label=label, log=True, across_label="steps")
    if options.strip is not None:
        save_strip(options.strip, drawn, prompts, counts)
    results = {"prompts": len(prompts), "exact_steps": options.exact, **figures}
    print(json.dumps({"machine": machine(), "results": results}))


if __name__ == "__main__":
    main()
