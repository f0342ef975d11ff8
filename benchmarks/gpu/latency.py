"""One picture from its prompt to an image without PNG, whole and in its parts; beside diffusers.

Weights are random, the text encoder has the shape of Gemma 2 2B. `share_of_floor` is the least time
of all products by this device's own measured peak and bandwidth (`opensana cost --device this`)
over the time that was taken; 1 cannot be reached.
"""

import importlib.util
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from benchmarks.gpu.measuring import attempt, milliseconds, peak_memory, short
from benchmarks.gpu.parts import Note, Setting
from benchmarks.random_model import PROMPT, diffusers_pipeline, random_sana, random_transformer
from opensana.drawing.decoding import decode_images
from opensana.drawing.solving import encode, job_noises, solve
from opensana.evaluate.cost.catalogue import sana as painter_of
from opensana.evaluate.cost.roofline import Limits, bound, limits
from opensana.pipeline import Sana
from opensana.request import Request
from opensana.runtime.compiled import compile_blocks
from opensana.runtime.triton_blocks import has_triton

MAIN, MAIN_SIDE = "sana_600m_1024", 1024
GOAL_MS, GOAL_SHARE = 150.0, 0.6
"""Of a picture of 0.6B at 1024 px on an H100, and of diffusers' time in the same run."""
SIDES = (1024, 512, 2048, 4096)
GUIDANCE = 4.5


def run(setting: Setting, note: Note) -> None:
    main = random_sana(MAIN, setting.device, setting.dtype, tiny=setting.tiny)
    here = None if setting.tiny else limits("this", str(setting.dtype).removeprefix("torch."))
    for side in (64,) if setting.tiny else SIDES:
        note(
            f"0.6B_{side}", attempt(setting, lambda side=side: measured(setting, main, side, here))
        )
        if side in (64, MAIN_SIDE):
            note(
                "waits_of_the_loop", attempt(setting, lambda side=side: waits(setting, main, side))
            )
            note("goal", attempt(setting, lambda side=side: goal(setting, main, side)))
    side = 64 if setting.tiny else MAIN_SIDE
    if not setting.tiny:
        large = random_sana("sana_1600m_1024", setting.device, setting.dtype)
        note("1.6B_1024", attempt(setting, lambda: measured(setting, large, side, here)))
        del large
        if setting.device.type == "cuda" and has_triton():
            network = random_transformer(
                main.transformer.config, setting.device, setting.dtype, triton=True
            )
            fused = replace(main, transformer=network)
            found = attempt(setting, lambda: measured(setting, fused, side, here))
            note("0.6B_1024_in_triton", found)
            del fused, network
        # Last: how long compiling takes is not known.
        compile_blocks(main.transformer)
        note("0.6B_1024_compiled", attempt(setting, lambda: measured(setting, main, side, here)))


def measured(setting: Setting, model: Sana, side: int, here: Limits | None) -> dict[str, Any]:
    """Milliseconds of a picture and of its parts, and the most memory that it took."""
    parts = calls(model, side, steps=2 if setting.tiny else 20)
    found: dict[str, Any] = dict(milliseconds(setting, parts, repeats=5 if side <= 1024 else 3))
    peak = peak_memory(setting.device, parts["whole"])
    if peak is not None:
        found["peak_gib"] = short(peak / 2**30)
    if here is not None:
        painter = painter_of(model.transformer.config, model.autoencoder.config)
        floor = bound(painter.picture(side), here).seconds
        found["share_of_floor"] = short(1000 * floor / found["whole"])
    return found


def calls(model: Sana, side: int, *, steps: int) -> dict[str, Callable[[], object]]:
    """The whole, and what it is made of: text, solver loop, decoding to an image."""
    request = Request(PROMPT, width=side, height=side, steps=steps, guidance=GUIDANCE, seed=1)
    job = model.job(request)
    with torch.inference_mode():
        texts, noises = encode(model, job), [next(job_noises(model, job))]
        latent = solve(model, job, texts, noises)

    def in_inference(call: Callable[[], object]) -> Callable[[], object]:
        def run() -> object:
            with torch.inference_mode():
                return call()

        return run

    return {
        "whole": lambda: model.generate(request),
        "text": in_inference(lambda: encode(model, job)),
        "loop": in_inference(lambda: solve(model, job, texts, noises)),
        "decode": in_inference(lambda: decode_images(model.autoencoder, latent, memory=None)),
    }


def goal(setting: Setting, model: Sana, side: int) -> dict[str, Any]:
    """The whole picture beside diffusers', in turn."""
    request = Request(
        PROMPT, width=side, height=side, steps=2 if setting.tiny else 20, guidance=GUIDANCE, seed=1
    )
    sides: dict[str, Callable[[], object]] = {"opensana": lambda: model.generate(request)}
    if importlib.util.find_spec("diffusers") is not None:
        sides["diffusers"] = eager(model, request)
    found: dict[str, Any] = dict(milliseconds(setting, sides))
    found["under_150_ms"] = found["opensana"] <= GOAL_MS
    if "diffusers" in found:
        found["share_of_diffusers"] = short(found["opensana"] / found["diffusers"])
        found["at_most_0.6_of_diffusers"] = found["share_of_diffusers"] <= GOAL_SHARE
    else:
        found["diffusers"] = "not installed here"
    return found


def eager(model: Sana, request: Request) -> Callable[[], object]:
    """diffusers' pipeline as published, with the same weights."""
    theirs = diffusers_pipeline(model)

    def draw() -> object:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")  # diffusers' own
            return theirs(
                request.prompt,
                width=request.width,
                height=request.height,
                num_inference_steps=request.steps,
                guidance_scale=request.guidance,
                generator=torch.Generator().manual_seed(1),
                use_resolution_binning=False,
            ).images[0]

    return draw


def waits(setting: Setting, model: Sana, side: int) -> dict[str, int]:
    """How often the host waits for the device in the solver loop of two and of four steps."""
    if setting.device.type != "cuda":
        raise NotImplementedError("CUDA alone tells of waits")
    return {f"{steps}_steps": _waits(model, side, steps) for steps in (2, 4)}


def _waits(model: Sana, side: int, steps: int) -> int:
    loop = calls(model, side, steps=steps)["loop"]
    with told(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loop()
    return sum("synchroniz" in str(warning.message).lower() for warning in caught)


@contextmanager
def told() -> Iterator[None]:
    """Waits of the host for a CUDA device are warnings."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
