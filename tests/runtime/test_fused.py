"""Fused blocks: the plain blocks' numbers, names and texts, from half as many kernels."""

from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest
import torch
from torch import Tensor, nn

from opensana.layers.linear_attention import relu_linear_attention
from opensana.layers.mix_ffn import depthwise_gated
from opensana.models.load import load_transformer
from opensana.models.save import write_transformer
from opensana.runtime.fused import FusedBlock, fuse
from opensana.runtime.quantize import Quantization, quantization_of, quantize
from opensana.transformer.attention import FoldedText, KeysValues
from opensana.transformer.model import PreparedText, Transformer, TransformerConfig, together
from tests import tiny

WIDE = replace(tiny.TRANSFORMER, num_attention_heads=8, cross_attention_dim=64, num_layers=3)
PLACED = replace(WIDE, interpolation_scale=1.0)
BIASED = replace(WIDE, attention_bias=True)
NORMED = replace(BIASED, qk_norm="rms_norm_across_heads")


def pair(config: TransformerConfig, dtype: torch.dtype) -> tuple[Transformer, Transformer]:
    plain, fused = (tiny.transformer(config).to(dtype) for _ in range(2))
    fuse(fused)
    assert all(isinstance(block, FusedBlock) for block in fused.transformer_blocks)
    return plain, fused


def states(tokens: int, seed: int, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, tokens, tiny.TEXT_WIDTH, generator=generator)


def prepared(network: Transformer, tokens: int, seed: int) -> PreparedText:
    return network.fold(network.prepare_text(states(tokens, seed)))


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@torch.inference_mode()
@pytest.mark.parametrize("config", [WIDE, PLACED, BIASED, NORMED])
@pytest.mark.parametrize("tokens", [3, 40])
def test_the_numbers_are_the_plain_ones(config: TransformerConfig, tokens: int) -> None:
    plain, fused = pair(config, torch.float32)
    x, timesteps = torch.randn(2, 8, 4, 6), torch.tensor([300.0, 700.0])
    texts = [prepared(network, tokens, 5) for network in (plain, fused)]
    assert all(
        isinstance(text.blocks[0], FoldedText if tokens == 3 and not config.qk_norm else KeysValues)
        for text in texts
    )
    expected = plain.velocity(x, timesteps, texts[0])
    assert error(fused.velocity(x, timesteps, texts[1]), expected) < 2e-6
    alone = fused.velocity(x, fused.moment(timesteps[1:]), texts[1])
    assert error(alone[1], expected[1]) < 2e-6


@torch.inference_mode()
def test_several_texts_and_masks() -> None:
    plain, fused = pair(WIDE, torch.float32)
    x, timestep = torch.randn(4, 8, 4, 4), torch.tensor([500.0])
    made = []
    for network in (plain, fused):
        texts = [prepared(network, tokens, tokens) for tokens in (2, 3, 40)]
        made.append(network.velocity(x, timestep, together(texts, [1, 2, 1])))
    assert error(made[1], made[0]) < 2e-6
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1] * 4, [1, 1, 0, 0]]).bool()
    made = [
        network.velocity(x, timestep, network.fold(network.prepare_text(states(4, 1, 4), mask)))
        for network in (plain, fused)
    ]
    assert error(made[1], made[0]) < 2e-6


@torch.inference_mode()
def test_a_query_without_any_key_gives_zero() -> None:
    block = tiny.transformer(WIDE).blocks[0]
    for layer in (block.attn1.to_q, block.attn1.to_k):
        layer.weight.zero_()
    expected = block.attn1(torch.randn(1, 4, 64))
    found = FusedBlock(block).attn1(torch.randn(1, 4, 64))
    assert torch.equal(found, expected)


@torch.inference_mode()
@pytest.mark.parametrize("config", [WIDE, NORMED], ids=["plain", "normed"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_no_worse_than_in_plain_blocks(
    dtype: torch.dtype, config: TransformerConfig
) -> None:
    exact = tiny.transformer(config)
    plain, fused = pair(config, dtype)
    errors: list[list[float]] = [[], []]
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        x, timestep = (
            torch.randn(2, 8, 8, 8, generator=generator),
            torch.tensor([100.0 + 150 * seed]),
        )
        expected = exact.velocity(x, timestep, prepared(exact, 3, seed))
        for network, found in zip((plain, fused), errors, strict=True):
            text = prepared(network, 3, seed)
            found.append(error(network.velocity(x, timestep, text).float(), expected))
    folded = KeysValues if config.qk_norm else FoldedText
    assert isinstance(prepared(fused, 3, 0).blocks[0], folded)
    assert isinstance(prepared(plain, 3, 0).blocks[0], KeysValues)
    # Not their sum: a query with hardly any key that fits makes one error that is larger than all.
    assert median(other / one for one, other in zip(*errors, strict=True)) < 1.1


@torch.inference_mode()
@pytest.mark.parametrize("config", [WIDE, NORMED], ids=["plain", "normed"])
def test_other_kernels_may_stand_in(config: TransformerConfig) -> None:
    """Those of `triton_kernels.py` take the place of the core of attention and of Mix-FFN."""
    plain, fused = pair(config, torch.float32)
    called: list[str] = []

    def core(*heads: Tensor) -> Tensor:
        called.append("core")
        return relu_linear_attention(*heads)

    def middle(layer: nn.Conv2d, x: Tensor) -> Tensor:
        called.append("middle")
        return depthwise_gated(layer, x)

    for block in fused.transformer_blocks:
        assert isinstance(block, FusedBlock)
        block.attn1.core, block.ff.middle = core, middle
    x, timestep = torch.randn(2, 8, 4, 6), torch.tensor([300.0])
    found = fused.velocity(x, timestep, prepared(fused, 3, 5))
    assert error(found, plain.velocity(x, timestep, prepared(plain, 3, 5))) < 2e-6
    assert called == ["core", "middle"] * 3


def test_names_and_weights_stay() -> None:
    for config in (WIDE, BIASED, NORMED):
        plain, fused = pair(config, torch.float32)
        expected, found = plain.state_dict(), fused.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], value) for name, value in expected.items())


@torch.inference_mode()
@pytest.mark.parametrize("scheme", ["w8a8", "fp8"])
@pytest.mark.parametrize("config", [WIDE, BIASED, NORMED, tiny.TRANSFORMER])
@pytest.mark.parametrize("tokens", [3, 40])
def test_products_of_8_bits(scheme: str, config: TransformerConfig, tokens: int) -> None:
    """Also with rows that had to be filled up to a multiple of 16."""
    plain, fused = (tiny.transformer(config) for _ in range(2))
    for network in (plain, fused):
        quantize(network, Quantization.named(scheme))
    state = {name: value.clone() for name, value in plain.state_dict().items()}
    fuse(fused)
    assert all(isinstance(block, FusedBlock) for block in fused.transformer_blocks)
    assert quantization_of(fused) == Quantization.named(scheme)
    found = fused.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], value) for name, value in state.items())
    x, timestep = torch.randn(2, 8, 4, 6), torch.tensor([300.0])
    expected = plain.velocity(x, timestep, prepared(plain, tokens, 5))
    made = fused.velocity(x, timestep, prepared(fused, tokens, 5))
    assert error(made, expected) < 0.02  # other roundings of what comes between the products


def test_blocks_that_have_other_layers_stay() -> None:
    for scheme in ("w8", "w4"):
        quantised = tiny.transformer(WIDE)
        quantize(quantised, Quantization.named(scheme))
        fuse(quantised)
        assert not any(isinstance(block, FusedBlock) for block in quantised.transformer_blocks)


def test_a_fused_model_is_written_as_any(tmp_path: Path) -> None:
    plain, fused = pair(WIDE, torch.float32)
    write_transformer(fused, tmp_path / "transformer")
    read = load_transformer(tmp_path).state_dict()
    assert all(torch.equal(read[name], value) for name, value in plain.state_dict().items())
