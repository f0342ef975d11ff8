"""Whether the device computes what a CPU computes in float64, in every format; and emoji-256."""

from dataclasses import dataclass

import torch

from benchmarks.gpu.cases import cases
from benchmarks.gpu.measuring import relative, short
from benchmarks.gpu.parts import Note, Setting
from opensana.runtime.tf32 import settle_float32
from opensana.runtime.triton_blocks import has_triton
from tests.gpu import golden

LEAST_DECIBELS = 40.0
"""Of emoji-256 as it runs on the device; bfloat16 in its decoder costs most."""


@dataclass(frozen=True)
class Format:
    """A number format on a device, and the relative error that rounding to it explains."""

    dtype: torch.dtype
    bound: float
    full: bool = True
    """Whether float32 is multiplied in full on CUDA, or as TF32."""


FORMATS = {
    "float32": Format(torch.float32, 1e-5),
    "tf32": Format(torch.float32, 2e-3, full=False),
    "bfloat16": Format(torch.bfloat16, 2e-2),
    "float16": Format(torch.float16, 5e-3),
}


def formats(device: torch.device) -> dict[str, Format]:
    """Those that the device has; a CPU has no half precision but bfloat16."""
    if device.type == "cuda":
        return FORMATS
    names = ("float32", "bfloat16") if device.type == "cpu" else ("float32", "bfloat16", "float16")
    return {name: FORMATS[name] for name in names}


def run(setting: Setting, note: Note) -> None:
    wrong: list[str] = []
    triton = setting.device.type == "cuda" and has_triton()
    for name, make in cases(tiny=setting.tiny, triton=triton).items():
        case = make()
        expected, errors = case.expected(), dict[str, float]()
        for label, form in formats(setting.device).items():
            if form.dtype == torch.float16 and not case.halves:
                continue
            settle_float32(setting.device, full=form.full)
            errors[label] = relative(case.found(setting.device, form.dtype), expected)
            most = case.slack * form.bound
            if not errors[label] <= most:  # NaN is wrong too
                wrong.append(f"{name} in {label}: {errors[label]} of at most {most}")
        note(name, errors)
        note("wrong", wrong)
    found = emoji(setting)
    note("emoji-256, decibels", found)
    if not min(found.values()) >= LEAST_DECIBELS:
        note("wrong", [*wrong, f"emoji-256: {found}, at least {LEAST_DECIBELS} dB"])


def emoji(setting: Setting) -> dict[str, float]:
    """PSNR of its pictures to those drawn on a CPU in float32: tests/gpu/golden.py."""
    kept = golden.Golden.read()
    sana = golden.model(kept.texts, setting.device, setting.dtype)
    requests = golden.REQUESTS[:1] if setting.tiny else golden.REQUESTS
    return {
        request.prompt: short(min(golden.decibels(golden.drawn(sana, request)[1], picture), 99))
        for request, picture in zip(requests, kept.pictures, strict=False)
    }
