"""Kernels for a GPU are put in where they run, and refused in one line elsewhere."""

from importlib.machinery import ModuleSpec

import pytest
import torch

from opensana.errors import ConfigError
from opensana.models import open as opening
from opensana.models.options import LoadOptions
from opensana.runtime import triton_blocks
from opensana.runtime.triton_blocks import use_triton
from tests import tiny

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def with_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_blocks, "find_spec", lambda name: ModuleSpec(name, None))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_blocks, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="need Triton, and it is not installed"):
        use_triton(tiny.transformer(), CUDA)


@pytest.mark.usefixtures("with_triton")
def test_without_cuda() -> None:
    with pytest.raises(ConfigError, match="for CUDA, got cpu; leave kernels out"):
        use_triton(tiny.transformer(), CPU)


@pytest.mark.usefixtures("with_triton")
def test_kernels_on_cuda_are_not_for_w8a8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "resolve_device", lambda _: CUDA)
    monkeypatch.setattr(opening, "resolve_dtype", lambda *_: torch.bfloat16)
    monkeypatch.setattr(opening, "slower_here", lambda *_: None)
    options = LoadOptions(device="cuda", kernels=True, quantize="w8a8")
    with pytest.raises(ConfigError, match="no form for w8a8"):
        opening.open_model(options)
