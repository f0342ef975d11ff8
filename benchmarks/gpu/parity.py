"""Whether the device computes what a CPU computes in float64, in every format; and emoji-256."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from benchmarks.gpu.cases import cases
from benchmarks.gpu.measuring import relative
from benchmarks.gpu.parts import Note, Setting


@dataclass(frozen=True)
class Format:
    """A number format on a device, and the relative error that rounding to it explains."""

    dtype: torch.dtype
    bound: float
    fp32_precision: str = "ieee"


FORMATS = {
    "float32": Format(torch.float32, 1e-5),
    "tf32": Format(torch.float32, 2e-3, "tf32"),
    "bfloat16": Format(torch.bfloat16, 2e-2),
    "float16": Format(torch.float16, 5e-3),
}


def formats(device: torch.device) -> dict[str, Format]:
    """Those that the device has; a CPU has no half precision but bfloat16."""
    if device.type == "cuda":
        return FORMATS
    names = ("float32", "bfloat16") if device.type == "cpu" else ("float32", "bfloat16", "float16")
    return {name: FORMATS[name] for name in names}


@contextmanager
def products_in(form: Format) -> Iterator[None]:
    """Products and convolutions of float32 as the format has them, on CUDA."""
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    before = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = form.fp32_precision
    try:
        yield
    finally:
        for backend, old in zip(backends, before, strict=True):
            backend.fp32_precision = old


def run(setting: Setting, note: Note) -> None:
    wrong: list[str] = []
    for name, make in cases(tiny=setting.tiny).items():
        case = make()
        expected, errors = case.expected(), dict[str, float]()
        for label, form in formats(setting.device).items():
            if form.dtype == torch.float16 and not case.halves:
                continue
            with products_in(form):
                errors[label] = relative(case.found(setting.device, form.dtype), expected)
            if not errors[label] <= form.bound:  # NaN is wrong too
                wrong.append(f"{name} in {label}: {errors[label]} of at most {form.bound}")
        note(name, errors)
        note("wrong", wrong)
