"""What the transformer promises beyond parity: sizes, prepared text, dtypes, errors, weights.

Also tests `transformer/initialisation.py`.
"""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from opensana.errors import RequestError
from opensana.transformer import Transformer, TransformerConfig, initialise
from opensana.transformer.attention import FoldedText, KeysValues
from opensana.transformer.model import PreparedText

TINY = TransformerConfig(
    in_channels=4,
    out_channels=4,
    num_attention_heads=4,
    attention_head_dim=16,
    num_layers=2,
    num_cross_attention_heads=2,
    cross_attention_head_dim=32,
    cross_attention_dim=64,
    caption_channels=24,
    sample_size=8,
)
RMS = "rms_norm_across_heads"
SMALL_WIDTH: dict[str, Any] = {
    "num_attention_heads": 36,
    "num_layers": 28,
    "num_cross_attention_heads": 16,
    "cross_attention_head_dim": 72,
    "cross_attention_dim": 1152,
}
SPRINT: dict[str, Any] = {"qk_norm": RMS, "guidance_embeds": True}
PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "0.6B": (SMALL_WIDTH, 591_747_872),
    "1.6B": ({}, 1_604_462_752),
    "1.6B-1.5": ({"qk_norm": RMS}, 1_604_641_952),
    "4.8B": ({"qk_norm": RMS, "num_layers": 60}, 4_721_825_952),
    "sprint-0.6B": (SMALL_WIDTH | SPRINT, 593_501_216),
    "sprint-1.6B": (SPRINT, 1_610_237_472),
}


def tiny(seed: int = 0, **options: Any) -> Transformer:
    model = Transformer(dataclasses.replace(TINY, **options)).eval()
    initialise(model, torch.Generator().manual_seed(seed))
    nn.init.ones_(model.caption_norm.weight)  # a text loud enough to be seen
    return model


def inputs(batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    latent = torch.randn(batch, 4, 6, 10, generator=generator)
    text = torch.randn(batch, 9, 24, generator=generator)
    return latent, torch.linspace(900, 20, batch), text


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_count_is_the_published_one(name: str) -> None:
    options, expected = PUBLISHED[name]
    with torch.device("meta"):
        model = Transformer(TransformerConfig(**options))
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


def test_the_600m_state_has_548_tensors() -> None:
    with torch.device("meta"):
        model = Transformer(TransformerConfig(**SMALL_WIDTH))
    assert len(model.state_dict()) == 548


def test_a_model_with_positions_built_on_meta_runs_once_weights_are_assigned() -> None:
    source = tiny(interpolation_scale=2.0)
    with torch.device("meta"):
        model = Transformer(source.config)
    model.load_state_dict(source.state_dict(), strict=True, assign=True)
    assert torch.equal(model(*inputs()), source(*inputs()))


@pytest.mark.parametrize("options", [{}, SPRINT], ids=["sana-1.0", "sprint"])
@torch.no_grad()
def test_prepared_text_gives_the_same_velocity(options: dict[str, Any]) -> None:
    model = tiny(**options)
    latent, timestep, text = inputs()
    mask = torch.arange(9) < torch.tensor([[5], [3]])
    guidance = torch.tensor([4.5, 2.0]) if options else None
    prepared = model.prepare_text(text, mask)
    whole = model(latent, timestep, text, mask, guidance=guidance)
    assert torch.equal(model.velocity(latent, timestep, prepared, guidance=guidance), whole)
    assert prepared.separate[0].keys.shape == (2, 2, 5, 32)


@pytest.mark.parametrize("lengths", [(5, 3), (5, 5)])
@torch.no_grad()
def test_a_short_text_is_folded_into_the_projections_around_it(lengths: tuple[int, int]) -> None:
    model = tiny()
    latent, timestep, text = inputs()
    mask = torch.arange(9) < torch.tensor(lengths)[:, None]
    prepared = model.prepare_text(text, mask)
    folded = model.fold(prepared)
    assert all(isinstance(block, FoldedText) for block in folded.blocks)
    expected = model.velocity(latent, timestep, prepared)
    torch.testing.assert_close(model.velocity(latent, timestep, folded), expected)
    one = model.fold(model.prepare_text(text[:1], mask[:1]))
    shared = model.velocity(latent[:1].expand(2, -1, -1, -1), timestep[:1].expand(2), one)
    torch.testing.assert_close(shared, expected[:1].expand(2, -1, -1, -1))
    assert model.fold(folded).blocks == folded.blocks
    # The mask is folded as well, which changes no bit.
    pairs = zip(model.blocks, prepared.separate, strict=True)
    beside = tuple(block.fold(KeysValues(*keys_values)) for block, keys_values in pairs)  # pyright: ignore
    with_mask = model.velocity(latent, timestep, PreparedText(beside, prepared.mask))
    assert folded.mask is None and torch.equal(model.velocity(latent, timestep, folded), with_mask)


@torch.no_grad()
def test_long_texts_normed_queries_and_half_precision_are_not_folded() -> None:
    _, _, text = inputs()
    long = text.repeat(1, 4, 1)
    for model, states in (
        (tiny(), long),
        (tiny(qk_norm=RMS), text),
        (tiny().to(torch.bfloat16), text),
    ):
        prepared = model.prepare_text(states)
        assert model.fold(prepared).blocks == prepared.blocks


@torch.no_grad()
def test_one_prompt_serves_a_batch_of_images() -> None:
    model = tiny()
    latent, timestep, text = inputs(3)
    text, mask = text[:1], torch.arange(9)[None] < 4
    shared = model.velocity(latent, timestep, model.prepare_text(text, mask))
    repeated = model(latent, timestep, text.expand(3, -1, -1), mask.expand(3, -1))
    torch.testing.assert_close(shared, repeated)


@torch.no_grad()
def test_what_a_mask_hides_has_no_influence() -> None:
    model = tiny()
    latent, timestep, text = inputs()
    mask = torch.arange(9) < torch.tensor([[6], [2]])
    hidden = text.masked_fill(~mask[:, :, None], 1e4)
    first = model(latent, timestep, text, mask)
    assert torch.equal(first, model(latent, timestep, hidden, mask))
    alone = model(latent[1:], timestep[1:], text[1:, :2])
    torch.testing.assert_close(first[1:], alone)


@torch.no_grad()
def test_a_text_without_any_valid_token_is_not_nan() -> None:
    model = tiny()
    mask = torch.zeros(2, 9, dtype=torch.bool)
    assert model(*inputs(), mask).isfinite().all()


@torch.no_grad()
def test_text_and_time_and_guidance_change_the_velocity() -> None:
    model = tiny(**SPRINT)
    nn.init.normal_(model.get_parameter("time_embed.guidance_embedder.linear_2.weight"), std=0.1)
    latent, timestep, text = inputs()
    scale = torch.full((2,), 4.5)
    first = model(latent, timestep, text, guidance=scale)
    assert not torch.allclose(first, model(latent, timestep - 10, text, guidance=scale))
    assert not torch.allclose(first, model(latent, timestep, -text, guidance=scale))
    assert not torch.allclose(first, model(latent, timestep, text, guidance=2 * scale))


@torch.no_grad()
def test_the_velocity_has_the_latents_dtype_whatever_the_weights() -> None:
    model = tiny().to(torch.bfloat16)
    latent, timestep, text = inputs()
    assert model.dtype == torch.bfloat16
    assert model(latent, timestep, text).dtype == torch.float32
    assert model(latent.bfloat16(), timestep, text).dtype == torch.bfloat16


@torch.no_grad()
def test_bfloat16_weights_still_tell_neighbouring_timesteps_apart() -> None:
    model = tiny().to(torch.bfloat16)
    latent, _, text = inputs()
    first, second = (model(latent, torch.full((2,), step), text) for step in (999.0, 998.0))
    assert not torch.equal(first, second)


def test_gradients_reach_every_parameter_under_checkpointing_from_outside() -> None:
    model = tiny(qk_norm=RMS)
    model(*inputs()).square().mean().backward()
    expected = {name: value.grad for name, value in model.named_parameters()}
    model.zero_grad()
    for block in model.transformer_blocks:
        forward = block.forward
        block.forward = lambda *given, forward=forward: checkpoint(
            forward, *given, use_reentrant=False
        )
    model(*inputs()).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        torch.testing.assert_close(parameter.grad, expected[name])


def test_a_latent_that_patches_do_not_tile_is_refused() -> None:
    model = tiny(patch_size=2)
    with pytest.raises(RequestError, match="multiples of 2"):
        model(torch.zeros(1, 4, 5, 4), torch.zeros(1), torch.zeros(1, 3, 24))


@pytest.mark.parametrize("options", [{}, SPRINT], ids=["unexpected", "missing"])
def test_guidance_must_be_given_exactly_where_it_is_embedded(options: dict[str, Any]) -> None:
    guidance = None if options else torch.ones(2)
    with pytest.raises(RequestError, match="guidance"):
        tiny(**options)(*inputs(), guidance=guidance)


def test_a_mask_that_is_not_boolean_is_refused() -> None:
    with pytest.raises(TypeError, match="boolean"):
        tiny()(*inputs(), torch.zeros(2, 9))


@pytest.mark.parametrize("options", [{}, SPRINT | {"norm_elementwise_affine": True}])
def test_initialise_draws_every_parameter_from_its_generator(options: dict[str, Any]) -> None:
    first, second, other = (Transformer(dataclasses.replace(TINY, **options)) for _ in range(3))
    for seed, model in ((5, first), (5, second), (6, other)):
        for parameter in model.parameters():
            nn.init.constant_(parameter, torch.nan)
        initialise(model, torch.Generator().manual_seed(seed))
    same, different = dict(second.named_parameters()), dict(other.named_parameters())
    for name, parameter in first.named_parameters():
        assert parameter.isfinite().all(), name
        assert torch.equal(parameter, same[name]), name
        varied = parameter.std() > 1e-6
        assert not varied or not torch.equal(parameter, different[name]), name


def test_initialise_has_the_published_scales() -> None:
    model = Transformer(dataclasses.replace(TINY, guidance_embeds=True, caption_channels=512))
    model.requires_grad_(False)
    initialise(model, torch.Generator().manual_seed(0))
    block: Any = model.transformer_blocks[0]
    limit = (6 / 128) ** 0.5
    assert 0.95 * limit < block.attn1.to_q.weight.abs().max() <= limit
    assert not block.attn1.to_out[0].bias.any()
    assert model.proj_out.weight.any()
    assert model.caption_projection.linear_1.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.time_embed.linear.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.time_embed.timestep_embedder.linear_2.weight.std().item() == pytest.approx(
        0.02, rel=0.05
    )
    assert not model.get_parameter("time_embed.guidance_embedder.linear_2.weight").any()
    assert torch.equal(model.caption_norm.weight, torch.full((64,), 0.01))
    assert block.scale_shift_table.std().item() == pytest.approx(64**-0.5, rel=0.15)
    assert block.ff.conv_depth.weight.abs().max() <= 1 / 3
