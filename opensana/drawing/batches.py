"""The batches of a job, solved in turn: halved where memory ends, until no more is wanted.

B pictures, C channels of the latent, h w its size.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from opensana.autoencoder.plan import decoder_chain
from opensana.drawing.job import Job
from opensana.drawing.solving import Prepared, job_noises, solve
from opensana.errors import OutOfMemory
from opensana.flow.edit import Start
from opensana.flow.solvers import OnStep
from opensana.models.open import OpenModel
from opensana.models.resolution_bins import Size
from opensana.runtime.shortage import attempt

Seeds = tuple[int, ...]
IMAGES_AT_ONCE = 4
MOST_AT_ONCE = 16
"""On a GPU, if it has the memory: so many fill a large one."""


def batches_of(model: OpenModel, job: Job, *, memory: int) -> list[Seeds]:
    """The seeds of the pictures that are drawn together, by the `memory` for decoding in bytes."""
    at_once = IMAGES_AT_ONCE
    if model.device.type != "cpu":
        fits = (
            count
            for count in range(IMAGES_AT_ONCE + 1, MOST_AT_ONCE + 1)
            if decoder_chain(model.autoencoder, count, *job.latent_size).one_band_memory <= memory
        )
        at_once = max(fits, default=IMAGES_AT_ONCE)
    return [job.seeds[i : i + at_once] for i in range(0, len(job.seeds), at_once)]


def solved_batches(
    model: OpenModel,
    job: Job,
    batches: Sequence[Seeds],
    texts: Sequence[Prepared],
    start: Start | None,
    *,
    on_step: OnStep | None,
    stop: Callable[[], bool],
    notice: Callable[[str], None],
) -> Iterator[tuple[Seeds, Tensor]]:
    """Seeds and the latents [B, C, h, w] that come of them, until `stop` says True.

    `notice` gets one line where a batch is halved; OutOfMemory where one picture is too much.
    """
    model.begin(model.transformer, model.controlnet)  # fewer pictures make no room for weights
    done, left = 0, list(batches)
    while left and not stop():
        seeds = left.pop(0)
        step = watched(on_step, stop, done, done + 1 + len(left))
        solving = partial(_solved, model, job, texts, start, seeds, step)
        try:
            latent = attempt(solving, model.device)
        except Stopped:
            return
        if latent is None:
            if model.graphs is not None:
                model.graphs.forget()
            left = [*_halves(seeds, job.drawn_size, notice), *left]
            continue
        yield seeds, latent
        done += 1


@torch.inference_mode()
def _solved(
    model: OpenModel,
    job: Job,
    texts: Sequence[Prepared],
    start: Start | None,
    seeds: Seeds,
    on_step: OnStep,
) -> Tensor:
    return solve(model, job, texts, job_noises(model, job, seeds), on_step=on_step, start=start)


def _halves(seeds: Seeds, size: Size, notice: Callable[[str], None]) -> tuple[Seeds, Seeds]:
    """Two batches for one that memory was too short for."""
    width, height = size
    if len(seeds) == 1:
        raise OutOfMemory(
            f"there is not enough memory for the steps of a picture of {width}x{height} pixels; "
            "try a smaller one, or a model in fewer bits (--quantize w8)"
        )
    half = -(-len(seeds) // 2)
    notice(f"memory ended with {len(seeds)} pictures at once; once again with {half}")
    return seeds[:half], seeds[half:]


class Stopped(Exception):
    """No more is wanted; raised between two steps and caught where batches are solved."""


def watched(on_step: OnStep | None, stop: Callable[[], bool], batch: int, batches: int) -> OnStep:
    """`on_step` with its steps counted over all batches; after each, Stopped if `stop` says so."""

    def watch(step: int, total: int, x: Tensor) -> None:
        if on_step is not None:
            on_step(batch * total + step, batches * total, x)
        if stop():
            raise Stopped

    return watch
