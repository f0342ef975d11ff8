"""The transformer computes what diffusers' SanaTransformer2DModel computes, from the same state.

Also tests `transformer/block.py` and `transformer/conditioning.py`.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from opensana.transformer import Transformer, TransformerConfig

diffusers = pytest.importorskip("diffusers")

SMALL: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 4,
    "attention_head_dim": 16,
    "num_layers": 2,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 32,
    "cross_attention_dim": 64,
    "caption_channels": 24,
    "sample_size": 8,
}
RMS = "rms_norm_across_heads"
VARIANTS: dict[str, dict[str, Any]] = {
    "sana-1.0": {},
    "sana-1.5": {"qk_norm": RMS},
    "sprint": {"qk_norm": RMS, "guidance_embeds": True, "guidance_embeds_scale": 0.1},
    "timestep-scale": {"timestep_scale": 0.001},
    "2k": {"interpolation_scale": 1.0},
    "4k": {"interpolation_scale": 2.0},
    "patch-2": {"patch_size": 2},
    "patch-2-positions": {"patch_size": 2, "interpolation_scale": 2.0},
    "biases-and-affine": {"attention_bias": True, "norm_elementwise_affine": True},
    "learned-variance": {"out_channels": 8, "mlp_ratio": 1.7},
    "narrow-cross": {"num_cross_attention_heads": 3, "cross_attention_head_dim": 8},
}


def pair(**options: Any) -> tuple[Transformer, Any]:
    """Our model and diffusers' with one random state, large enough for every term to matter."""
    torch.manual_seed(0)
    reference = diffusers.SanaTransformer2DModel(**SMALL | options).eval()
    state = {name: 0.15 * torch.randn_like(value) for name, value in reference.state_dict().items()}
    ours = Transformer(TransformerConfig.from_dict(dict(reference.config))).eval()
    ours.load_state_dict(state, strict=True)
    reference.load_state_dict(ours.state_dict(), strict=True)
    return ours, reference


def inputs(height: int = 8, width: int = 8, text_tokens: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    latent = torch.randn(2, 4, height, width)
    return latent, torch.tensor([999.0, 12.5]), 3 * torch.randn(2, text_tokens, 24)


def draw_reference(
    reference: Any, latent: Tensor, timestep: Tensor, text: Tensor, mask: Tensor | None
) -> Tensor:
    """Scale timestep and guidance as diffusers' pipelines do, outside of the model."""
    scales = reference.config
    guidance = torch.full((2,), 4.5) * scales.guidance_embeds_scale
    return reference(
        latent,
        encoder_hidden_states=text,
        timestep=timestep * scales.timestep_scale,
        guidance=guidance if scales.guidance_embeds else None,
        encoder_attention_mask=None if mask is None else mask.long(),
    ).sample


def draw_ours(
    ours: Transformer, latent: Tensor, timestep: Tensor, text: Tensor, mask: Tensor | None
) -> Tensor:
    guidance = torch.full((2,), 4.5) if ours.config.guidance_embeds else None
    return ours(latent, timestep, text, mask, guidance=guidance)


def assert_close(ours: Tensor, reference: Tensor, tolerance: float = 1e-5) -> None:
    assert ours.shape == reference.shape
    assert ours.dtype == reference.dtype
    assert (ours - reference).abs().max() <= tolerance * reference.abs().max()


CASES = [(variant, (4, 12)) for variant in VARIANTS] + [
    (variant, (8, 8)) for variant in ("sana-1.0", "2k", "4k", "patch-2-positions")
]


@pytest.mark.parametrize(("variant", "size"), CASES)
@torch.no_grad()
def test_velocity_equals_diffusers(variant: str, size: tuple[int, int]) -> None:
    ours, reference = pair(**VARIANTS[variant])
    given = inputs(*size)
    mask = torch.tensor([[1, 1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0, 0]]).bool()
    for chosen in (None, mask):
        assert_close(draw_ours(ours, *given, chosen), draw_reference(reference, *given, chosen))


@pytest.mark.parametrize(
    "rows",
    [
        [[1, 0, 0, 1, 0, 1, 1], [0, 0, 1, 0, 0, 0, 1]],
        [[0, 0, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0]],
        [[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]],
    ],
    ids=["holes", "left padding", "no padding"],
)
@torch.no_grad()
def test_any_mask_equals_diffusers(rows: list[list[int]]) -> None:
    ours, reference = pair()
    given, mask = inputs(), torch.tensor(rows).bool()
    assert_close(draw_ours(ours, *given, mask), draw_reference(reference, *given, mask))


@torch.no_grad()
def test_a_wholly_masked_text_equals_diffusers() -> None:
    ours, reference = pair()
    given = inputs()
    mask = torch.tensor([[0] * 7, [1, 1, 1, 0, 0, 0, 0]]).bool()
    # Diffusers adds -10000 to every score of such a row, which costs it three digits.
    assert_close(draw_ours(ours, *given, mask), draw_reference(reference, *given, mask), 1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_is_as_near_to_float32_as_diffusers(dtype: torch.dtype) -> None:
    ours, reference = pair(qk_norm=RMS)
    given = inputs()
    exact = draw_reference(reference, *given, None)
    latent, timestep, text = given
    half = draw_reference(reference.to(dtype), latent.to(dtype), timestep, text.to(dtype), None)
    error = (draw_ours(ours.to(dtype), *given, None) - exact).abs().mean()
    assert error <= 1.25 * (half.float() - exact).abs().mean()


def test_gradients_equal_diffusers() -> None:
    ours, reference = pair(qk_norm=RMS)
    given, mask = inputs(), torch.tensor([[1] * 7, [1, 1, 1, 0, 0, 0, 0]]).bool()
    draw_ours(ours, *given, mask).square().mean().backward()
    draw_reference(reference, *given, mask).square().mean().backward()
    expected = dict(reference.named_parameters())
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, name
        largest = expected[name].grad.abs().max()
        assert (parameter.grad - expected[name].grad).abs().max() <= 1e-4 * largest + 1e-9, name
