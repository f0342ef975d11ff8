"""Norms of Gemma in fewer kernels: the plain numbers, and the same names."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from transformers import Gemma3TextConfig

from opensana.runtime.fused_text import FusedNorm, fuse_norms
from opensana.runtime.placing import prepare_for_inference
from opensana.text.gemma3 import Gemma3TextModel
from opensana.text.gemma3_config import Gemma3Config
from tests import tiny
from tests.launches import Launches

META = torch.device("meta")
TOKENS = torch.tensor([[2, 9, 30, 41, 7], [2, 8, 8, 100, 0]])


def gemma_3() -> Gemma3TextModel:
    values = Gemma3TextConfig(
        vocab_size=260, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8,
    ).to_dict()  # fmt: skip
    config = Gemma3Config.from_dict(values)
    assert config is not None
    torch.manual_seed(5)
    model = Gemma3TextModel(config).eval().requires_grad_(False)
    model.embed_tokens.weight.zero_()  # whatever the memory held, until it is randomised
    return model


def pair(make: Callable[[], Any], dtype: torch.dtype) -> tuple[Any, Any]:
    plain = make()
    tiny.randomise(plain, 4)
    plain.to(dtype)
    fused = deepcopy(plain)
    fuse_norms(fused)
    assert any(isinstance(part, FusedNorm) for part in fused.modules())
    return plain, fused


@torch.inference_mode()
@pytest.mark.parametrize("make", [tiny.gemma, gemma_3])
def test_the_numbers_and_names_are_the_plain_ones(make: Callable[[], Any]) -> None:
    plain, fused = pair(make, torch.float32)
    torch.testing.assert_close(fused(TOKENS)[0], plain(TOKENS)[0], rtol=1e-5, atol=1e-5)
    expected, found = plain.state_dict(), fused.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_one_norm_in_half_precision_is_the_plain_bits(dtype: torch.dtype) -> None:
    """Both round once, at the end: float32 before it decides a few in ten thousand."""
    plain, fused = pair(gemma_3, dtype)
    x = torch.randn(2, 3, 400, 8).to(dtype).transpose(1, 2)
    one, other = (model.layers[0].self_attn.q_norm(x) for model in (plain, fused))
    assert one.dtype == other.dtype == dtype
    assert (one != other).float().mean() < 1e-3


@torch.inference_mode()
def test_fewer_kernels() -> None:
    counts = []
    for model in pair(gemma_3, torch.bfloat16):
        with Launches() as seen:
            model.to(META)(TOKENS.to(META))
        counts.append(seen.count)
    norms = 2 * 6 + 1
    assert counts[0] - counts[1] == 7 * norms, "ten operations are three"


@pytest.mark.parametrize(("device", "fused"), [("cuda", True), ("mps", False), ("cpu", False)])
def test_only_cuda_has_them(device: str, fused: bool) -> None:
    cpu = torch.device("cpu")
    model = prepare_for_inference(tiny.gemma(), torch.device(device), torch.bfloat16, at=cpu)
    norms = [part for part in model.modules() if isinstance(part, FusedNorm)]
    assert bool(norms) == fused
    assert all(norm.scale.dtype == torch.float32 for norm in norms)
