"""What quantisation does to a model: the report that `opensana quantize` leaves beside it.

Both models see the same texts and noise. Each layer is compared on the tokens that the plain one
feeds it half-way; velocities at five noise levels of a latent that the plain one drew; prompts by
their states. In memory lies at most one text encoder, and no plain transformer twice beside it.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from opensana.drawing.job import Job, make_job
from opensana.drawing.prompts import read_prompts
from opensana.drawing.solving import encode, network_of, velocity_of
from opensana.files.user_cache import cache_folder
from opensana.files.writing import write_json
from opensana.flow.guidance import Velocity
from opensana.flow.noise import noise_for
from opensana.flow.path import interpolate
from opensana.metrics.reconstruction import psnr
from opensana.models.load import load_text, load_transformer
from opensana.models.parts import quantization
from opensana.pictures.sheet import contact_sheet
from opensana.pipeline import Sana
from opensana.request import Request
from opensana.runtime.placing import part_dtype, prepare_for_inference
from opensana.runtime.quantize import join_products, quantizable, quantization_of
from opensana.transformer.model import Transformer

PROMPTS = ("a red apple", "a cat face on a green background", "a violin", "a house at night")
SIGMAS = (0.9, 0.7, 0.5, 0.3, 0.1)
TIMED_STEPS = 7
TEXT = "text_encoder"


@torch.inference_mode()
def compare(
    plain: Sana,
    reference: Callable[[], Transformer],
    folder: Path,
    *,
    prompts: Sequence[str] = PROMPTS,
    steps: int | None = None,
    kernels: bool = False,
) -> dict[str, Any]:
    """Figures of a quantised model folder against the plain model; the sheet lies in the folder.

    `reference` loads the plain transformer once more, its layers neither packed nor joined. The
    plain model's text encoder is dropped.
    """
    requests = [Request(text, seed=i, steps=steps) for i, text in enumerate(prompts)]
    figures: dict[str, Any] = {"scheme": {"scheme": "w8"}}  # of the text, if nothing else is
    other = _with_text_of(folder, plain, requests, figures)
    first = make_job(replace(requests[0], guidance=1.0), plain)
    x0 = plain.draw_latents(requests[0])
    if quantization(folder / "transformer") is not None:
        network = load_transformer(folder).to(plain.device)
        found = quantization_of(network)
        assert found is not None
        figures["scheme"] = found.to_dict()
        noise = noise_for([1], (x0.shape[1], x0.shape[2], x0.shape[3]), plain.device)
        exact = replace(plain, transformer=reference())
        layers = layer_errors(exact, network, first, interpolate(x0, noise, 0.5))
        del exact
        if found.scheme == "w8a8":
            join_products(network, cache_folder() if kernels else None)
        prepare_for_inference(network, plain.device, plain.transformer.dtype)
        other = replace(other, transformer=network)
        velocities = [_velocity(sana, first) for sana in (plain, replace(other, text=plain.text))]
        times = [_timestep(plain, sigma) for sigma in SIGMAS]
        figures |= _steps(velocities, times, x0, noise) | {"layers": layers}
    return figures | {"pictures": _sheet(plain, other, requests, folder / "report.png")}


def _with_text_of(
    folder: Path, plain: Sana, requests: Sequence[Request], figures: dict[str, Any]
) -> Sana:
    """The plain model with the text encoder of the folder, which is compared if it is another."""
    prompts, empty = [r.prompt for r in requests], [r.negative_prompt for r in requests]
    plain.text.drop_weights(prompts, empty)
    if plain.info.defaults.text_encoder or quantization(folder / TEXT) is None:
        return plain
    dtype = part_dtype(plain.device, plain.transformer.dtype)
    text = load_text(folder, plain.info, device=plain.device, dtype=dtype)
    text.drop_weights(prompts, empty)
    other = replace(plain, text=text)
    figures["text"] = {}
    for request in requests:
        job = make_job(replace(request, guidance=1.0), plain)
        found, expected = (read_prompts(sana.text, job)[0].states[0] for sana in (other, plain))
        cosine = F.cosine_similarity(found.float(), expected.float(), dim=-1).min()
        error = relative_error(found, expected)
        figures["text"][request.prompt] = {"least_cosine": float(cosine), "error": error}
    return other


def _velocity(sana: Sana, job: Job) -> Velocity:
    return velocity_of(network_of(sana), encode(sana, job)[0], sana.info.defaults.guidance)


def layer_errors(
    exact: Sana, network: Transformer, job: Job, x: Tensor
) -> dict[str, dict[str, float]]:
    """Cosine and relative error of each quantised layer's output, by the layer's name."""
    errors: dict[str, dict[str, float]] = {}
    modules, reference = dict(network.named_modules()), exact.transformer
    names = {module: name for name, module in reference.named_modules()}

    def watch(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        found = modules[names[layer]](inputs[0])
        cosine = F.cosine_similarity(found.flatten().float(), output.flatten().float(), dim=0)
        errors[names[layer]] = {"cosine": float(cosine), "error": relative_error(found, output)}

    # Unfolded, so that the queries and outputs of the cross-attention are products too.
    (text,) = read_prompts(exact.text, job)
    prepared = reference.prepare_text(text.states.to(x.device), text.mask.to(x.device))
    hooks = [layer.register_forward_hook(watch) for _, _, layer in quantizable(reference)]
    velocity_of(reference, prepared, exact.info.defaults.guidance)(x, _timestep(exact, 0.5))
    for hook in hooks:
        hook.remove()
    return errors


def _steps(
    velocities: Sequence[Velocity], times: Sequence[Tensor], x0: Tensor, noise: Tensor
) -> dict[str, Any]:
    """Of the plain and of the quantised velocity: seconds a step, and the error at each level."""
    middle = len(SIGMAS) // 2
    halfway = interpolate(x0, noise, SIGMAS[middle])
    seconds = _alternating([lambda run=run: run(halfway, times[middle]) for run in velocities])
    errors = {}
    for sigma, timestep in zip(SIGMAS, times, strict=True):
        x = interpolate(x0, noise, sigma)
        expected, found = (run(x, timestep) for run in velocities)
        errors[str(sigma)] = relative_error(found, expected)
    return {
        "seconds_a_step": {"before": seconds[0], "after": seconds[1]},
        "faster": seconds[0] / seconds[1],
        "velocity_error": errors,
    }


def _timestep(sana: Sana, sigma: float) -> Tensor:
    """As the network takes it: of 1000, or for a Sprint model the noise level itself."""
    return torch.tensor([sigma if sana.sprint else 1000 * sigma], device=sana.device)


def _sheet(plain: Sana, other: Sana, requests: Sequence[Request], file: Path) -> dict[str, float]:
    """PSNR of each prompt's picture; the sheet has the plain one above the other."""
    rows = [[sana.generate(request)[0].image for request in requests] for sana in (plain, other)]
    pairs = zip(*([_pixels(image) for image in row] for row in rows), strict=True)
    values = [float(psnr(one, two)) for one, two in pairs]
    texts = [request.prompt for request in requests]
    below = [f"quantised, {value:.1f} dB" for value in values]
    images: list[Image.Image] = [*rows[0], *rows[1]]
    contact_sheet(images, [*texts, *below], columns=len(texts)).save(file)
    return dict(zip(texts, values, strict=True))


def _pixels(image: Image.Image) -> Tensor:
    """[1, 3, H, W] in [-1, 1]."""
    values = torch.from_numpy(np.asarray(image.convert("RGB")).copy()).float()
    return (values / 127.5 - 1).permute(2, 0, 1)[None]


def relative_error(found: Tensor, expected: Tensor) -> float:
    """The norm of the difference, of that of what is expected."""
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def _alternating(runs: Sequence[Callable[[], object]]) -> list[float]:
    """The shortest seconds of each, called in turn: what others use the processor for counts least.

    A first call of each, in which layers are packed, is not counted.
    """
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(TIMED_STEPS + 1):
        for run, taken in zip(runs, times, strict=True):
            start = time.perf_counter()
            run()
            taken.append(time.perf_counter() - start)
    return [min(taken[1:]) for taken in times]


# ------------------------------------------------------------------ the report's files


def write_report(figures: Mapping[str, Any], sizes: Mapping[str, Any], folder: Path) -> None:
    """report.json and report.md, beside the sheet."""
    write_json(folder / "report.json", {"bytes": dict(sizes), **figures})
    blocks = [
        f"# {figures['scheme']['scheme']}",
        _table(
            ["part", "bytes before", "after"],
            [[part, f"{both['before']:,}", f"{both['after']:,}"] for part, both in sizes.items()],
        ),
    ]
    if "seconds_a_step" in figures:
        before, after = (figures["seconds_a_step"][name] for name in ("before", "after"))
        errors = figures["velocity_error"].items()
        blocks += [
            f"A step takes {after:.3g} s here, {before:.3g} s before (the shortest of"
            f" {TIMED_STEPS}, in turn): {before / after:.2f} times as fast.",
            _table(["noise level", "error of the velocity"], [[s, f"{e:.2%}"] for s, e in errors]),
        ]
    if "text" in figures:
        rows = [
            [text, f"{found['error']:.2%}", f"{found['least_cosine']:.5f}"]
            for text, found in figures["text"].items()
        ]
        blocks.append(_table(["prompt", "error of its states", "least cosine of a token"], rows))
    rows = [[text, f"{value:.1f} dB"] for text, value in figures["pictures"].items()]
    blocks += [_table(["prompt", "PSNR of its picture"], rows), "![pictures](report.png)"]
    if "layers" in figures:
        rows = [
            [name, f"{found['cosine']:.5f}", f"{found['error']:.2%}"]
            for name, found in figures["layers"].items()
        ]
        blocks.append(_table(["layer", "cosine", "relative error"], rows))
    (folder / "report.md").write_text("\n\n".join(blocks) + "\n", encoding="utf-8")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in r] for r in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
