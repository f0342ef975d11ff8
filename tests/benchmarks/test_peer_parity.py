"""The blocks of the headline give the numbers of diffusers' own, with the same random weights."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.peer_blocks import DoubleBlock, PixArtBlock, SingleBlock, rotary_turns

pytest.importorskip("diffusers")

WIDTH, HEADS, IMAGE, TEXT = 32, 2, 6, 4
HEADS_OF = {"attention.to_q": "to_q", "attention.to_k": "to_k", "attention.to_v": "to_v"}
ADDED = {"attention.to_q": "add_q_proj", "attention.to_k": "add_k_proj"}
ADDED |= {"attention.to_v": "add_v_proj"}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def given(theirs: nn.Module, block: nn.Module, names: dict[str, str]) -> None:
    """Load the block's layers from theirs by name; all of both are used."""
    state, found = theirs.state_dict(), {}
    for ours, other in names.items():
        for key in [key for key in state if key == other or key.startswith(other + ".")]:
            found[ours + key.removeprefix(other)] = state.pop(key)
    assert not state, f"not used: {list(state)}"
    block.load_state_dict(found)


def stream(ours: str, norm: str, heads: dict[str, str], out: str, mlp: str) -> dict[str, str]:
    return {
        f"{ours}.modulation": f"{norm}.linear",
        **{f"{ours}.{mine}": f"attn.{name}" for mine, name in heads.items()},
        f"{ours}.out": f"attn.{out}",
        f"{ours}.feed_forward.up": f"{mlp}.net.0.proj",
        f"{ours}.feed_forward.down": f"{mlp}.net.2",
    }


def two_streams() -> dict[str, str]:
    image = stream("image", "norm1", HEADS_OF, "to_out.0", "ff")
    return image | stream("text", "norm1_context", ADDED, "to_add_out", "ff_context")


def norms(ours: str, query: str, key: str) -> dict[str, str]:
    names = (f"attn.{query}.weight", f"attn.{key}.weight")
    return {f"{ours}attention.norms.{index}": name for index, name in enumerate(names)}


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(1, IMAGE, WIDTH), torch.randn(1, TEXT, WIDTH), torch.randn(1, WIDTH)


def turns() -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Ours, and as diffusers gives them: cosines and sines, each twice."""
    ours = rotary_turns(IMAGE + TEXT, WIDTH // HEADS)
    cosines, sines = (part.repeat_interleave(2, 1) for part in (ours.real, ours.imag))
    return ours, (cosines, sines)


def random_norms(module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        if "norm" in name and parameter.ndim == 1 and name.endswith("weight"):
            nn.init.uniform_(parameter, 0.5, 2)


@torch.inference_mode()
def test_flux_double() -> None:
    from diffusers.models.transformers.transformer_flux import FluxTransformerBlock

    theirs: Any = FluxTransformerBlock(WIDTH, HEADS, WIDTH // HEADS)
    random_norms(theirs)
    block = DoubleBlock(WIDTH, HEADS, normed=True)
    names = two_streams() | norms("image.", "norm_q", "norm_k")
    given(theirs, block, names | norms("text.", "norm_added_q", "norm_added_k"))
    (tokens, text, condition), (mine, other) = inputs(), turns()
    expected_text, expected = theirs(tokens, text, condition, other)
    image, words = block(tokens, text, condition, mine)
    torch.testing.assert_close(image, expected)
    torch.testing.assert_close(words, expected_text)


@torch.inference_mode()
def test_flux_single() -> None:
    from diffusers.models.transformers.transformer_flux import FluxSingleTransformerBlock

    theirs: Any = FluxSingleTransformerBlock(WIDTH, HEADS, WIDTH // HEADS)
    random_norms(theirs)
    block = SingleBlock(WIDTH, HEADS)
    names = {mine: f"attn.{name}" for mine, name in HEADS_OF.items()}
    names |= norms("", "norm_q", "norm_k")
    names |= {"modulation": "norm.linear", "up": "proj_mlp", "out": "proj_out"}
    given(theirs, block, names)
    (tokens, text, condition), (mine, other) = inputs(), turns()
    expected = torch.cat(theirs(tokens, text, condition, other), 1)
    torch.testing.assert_close(block(torch.cat([text, tokens], 1), condition, mine), expected)


@torch.inference_mode()
def test_sd3() -> None:
    from diffusers.models.attention import JointTransformerBlock

    theirs: Any = JointTransformerBlock(WIDTH, HEADS, WIDTH // HEADS)
    block = DoubleBlock(WIDTH, HEADS, normed=False)
    given(theirs, block, two_streams())
    tokens, text, condition = inputs()
    expected_text, expected = theirs(tokens, text, condition)
    image, words = block(tokens, text, condition)
    torch.testing.assert_close(image, expected)
    torch.testing.assert_close(words, expected_text)


@torch.inference_mode()
def test_pixart() -> None:
    from diffusers.models.attention import BasicTransformerBlock

    theirs: Any = BasicTransformerBlock(
        WIDTH,
        HEADS,
        WIDTH // HEADS,
        cross_attention_dim=WIDTH,
        activation_fn="gelu-approximate",
        attention_bias=True,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
    )
    block = PixArtBlock(WIDTH, HEADS)
    parts = ("to_q", "to_k", "to_v")
    names = {f"attention.{part}": f"attn1.{part}" for part in parts}
    names |= {f"cross.{part}": f"attn2.{part}" for part in parts}
    names |= {"out": "attn1.to_out.0", "cross_out": "attn2.to_out.0"}
    names |= {"feed_forward.up": "ff.net.0.proj", "feed_forward.down": "ff.net.2"}
    given(theirs, block, names | {"scale_shift_table": "scale_shift_table"})
    tokens, text, _ = inputs()
    modulation = torch.randn(1, 6 * WIDTH)
    expected = theirs(tokens, encoder_hidden_states=text, timestep=modulation)
    torch.testing.assert_close(block(tokens, modulation.unflatten(1, (6, -1)), text), expected)
