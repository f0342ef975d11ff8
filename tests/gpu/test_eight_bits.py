"""8-bit products of a GPU: the whole numbers of a CPU, and velocities as near as those there."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from benchmarks.gpu.measuring import relative
from opensana.errors import ConfigError
from opensana.runtime.fused import is_fused
from opensana.runtime.int8 import int_mm
from opensana.runtime.placing import prepare_for_inference
from opensana.runtime.quantize import Quantization, SchemeName, check_device, quantize
from opensana.transformer.model import Transformer
from tests import tiny

pytestmark = pytest.mark.gpu
CONFIG = replace(tiny.TRANSFORMER, num_attention_heads=8, cross_attention_dim=64)
BOUNDS = {"w8a8": 0.01, "fp8": 0.02}
"""Ties are rounded to either side, and fp8's sums are bfloat16 on a GPU."""


@pytest.mark.parametrize("rows", [1, 17, 64])
def test_the_same_whole_numbers(rows: int, device: torch.device) -> None:
    usable(device, "w8a8")
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(-127, 128, (rows, 1152), dtype=torch.int8, generator=generator)
    weight = torch.randint(-127, 128, (48, 1152), dtype=torch.int8, generator=generator)
    found = int_mm(values.to(device), weight.to(device).t())
    assert torch.equal(found.cpu(), values.int() @ weight.t().int())


@torch.inference_mode()
@pytest.mark.parametrize("scheme", ["w8a8", "fp8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_velocities(scheme: SchemeName, dtype: torch.dtype, device: torch.device) -> None:
    usable(device, scheme)
    here, there = (tiny.transformer(CONFIG) for _ in range(2))
    for network in (here, there):
        quantize(network, Quantization(scheme))
    prepare_for_inference(there, device, dtype)
    assert is_fused(there)
    bound = BOUNDS[scheme] + (0.02 if dtype == torch.bfloat16 else 0)
    assert relative(velocity(there), velocity(here)) < bound


def velocity(network: Transformer) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(2, 8, 4, 6, generator=generator)
    text = torch.randn(1, 40, tiny.TEXT_WIDTH, generator=generator)
    first = next(network.parameters())
    prepared = network.fold(network.prepare_text(text.to(first)))
    return network.velocity(latent.to(first), torch.tensor([300.0, 700.0]), prepared).float().cpu()


def usable(device: torch.device, scheme: str) -> None:
    try:
        check_device(scheme, device)
    except ConfigError as error:
        pytest.skip(str(error))
