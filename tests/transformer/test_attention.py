"""The attention modules equal their textbook forms, written out here."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from opensana.transformer.attention import CrossAttention, SelfAttention
from opensana.transformer.conditioning import drop_padding, positions, sinusoid


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def heads_of(tokens: Tensor, heads: int) -> Tensor:
    return tokens.reshape(*tokens.shape[:2], heads, -1).permute(0, 2, 1, 3)


@pytest.mark.parametrize("qk_norm", [False, True])
@torch.no_grad()
def test_self_attention_equals_the_quadratic_form(qk_norm: bool) -> None:
    attention = SelfAttention(48, 3, bias=True, qk_norm=qk_norm, dropout=0.0)
    tokens = torch.randn(2, 20, 48)
    queries, keys = attention.to_q(tokens), attention.to_k(tokens)
    if qk_norm:
        queries, keys = (x * x.square().mean(-1, True).add(1e-5).rsqrt() for x in (queries, keys))
    scores = heads_of(queries, 3).relu() @ heads_of(keys, 3).relu().transpose(-1, -2)
    weights = scores / scores.sum(-1, keepdim=True)
    out = weights @ heads_of(attention.to_v(tokens), 3)
    expected = attention.to_out[0](out.permute(0, 2, 1, 3).reshape(2, 20, 48))
    torch.testing.assert_close(attention(tokens), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_self_attention_does_not_depend_on_the_order_of_tokens() -> None:
    attention = SelfAttention(32, 2, bias=False, qk_norm=False, dropout=0.0)
    tokens, order = torch.randn(1, 30, 32), torch.randperm(30)
    torch.testing.assert_close(attention(tokens)[:, order], attention(tokens[:, order]))


@torch.no_grad()
def test_float16_self_attention_is_clamped_to_finite_values() -> None:
    attention = SelfAttention(32, 2, bias=False, qk_norm=False, dropout=0.0).half()
    torch.nn.init.constant_(attention.get_parameter("to_out.0.weight"), 6e4)
    attention.to_v.weight.fill_(1.0)
    out = attention(torch.ones(1, 4, 32, dtype=torch.float16))
    assert out.isfinite().all()


@pytest.mark.parametrize("qk_norm", [False, True])
@torch.no_grad()
def test_cross_attention_equals_softmax_with_an_additive_mask(qk_norm: bool) -> None:
    attention = CrossAttention(48, 2, 16, qk_norm=qk_norm, dropout=0.0)
    tokens, text = torch.randn(2, 10, 48), torch.randn(2, 6, 48)
    mask = torch.arange(6) < torch.tensor([[6], [2]])
    queries, keys = attention.norm_q(attention.to_q(tokens)), attention.norm_k(attention.to_k(text))
    scores = heads_of(queries, 2) @ heads_of(keys, 2).transpose(-1, -2) / 16**0.5
    weights = (scores - 10000.0 * (~mask)[:, None, None]).softmax(-1)
    out = weights @ heads_of(attention.to_v(text), 2)
    expected = attention.to_out[0](out.permute(0, 2, 1, 3).reshape(2, 10, 32))
    for given in (text, attention.keys_values(text)):
        torch.testing.assert_close(attention(tokens, given, mask), expected, rtol=1e-5, atol=1e-5)


def test_pack_keeps_valid_tokens_in_order_and_drops_the_rest() -> None:
    text = torch.arange(10.0).reshape(2, 5, 1)
    mask = torch.tensor([[0, 1, 0, 1, 1], [1, 0, 0, 0, 1]]).bool()
    packed, left = drop_padding(text, mask)
    assert packed[0, :, 0].tolist() == [1, 3, 4]
    assert packed[1, :2, 0].tolist() == [5, 9]
    assert left is not None
    assert left.tolist() == [[True] * 3, [True, True, False]]


def test_pack_needs_no_mask_where_rows_are_equally_long() -> None:
    mask = torch.tensor([[0, 1, 1], [1, 1, 0]]).bool()
    packed, left = drop_padding(torch.randn(2, 3, 4), mask)
    assert packed.shape == (2, 2, 4)
    assert left is None


def test_pack_keeps_the_whole_of_a_row_without_valid_tokens() -> None:
    text = torch.randn(2, 3, 4)
    packed, left = drop_padding(text, torch.tensor([[0, 0, 0], [1, 0, 0]]).bool())
    assert torch.equal(packed[0], text[0])
    assert left is not None
    assert left.tolist() == [[True] * 3, [True, False, False]]


def test_lengths_are_read_where_the_mask_is() -> None:
    """Nothing waits for an accelerator, which `meta` stands for: reading from it is an error."""
    text = torch.empty(2, 5, 4, device="meta")
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 0, 0]])
    packed, left = drop_padding(text, mask.bool())
    assert packed.shape == (2, 3, 4)
    assert left is not None and left.is_meta and left.shape == (2, 3)
    packed, left = drop_padding(text, mask.flip(1).bool())
    assert packed.shape == (2, 3, 4)


def test_padding_on_the_right_is_cut_off() -> None:
    text = torch.randn(2, 5, 4)
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 0, 0]]).bool()
    packed, left = drop_padding(text, mask)
    assert torch.equal(packed, text[:, :3])
    assert left is not None and torch.equal(left, mask[:, :3])


def test_sinusoid_starts_with_the_cosines_and_keeps_float32() -> None:
    out = sinusoid(torch.tensor([0, 7]))
    assert out.dtype == torch.float32
    assert torch.equal(out[0], torch.cat([torch.ones(128), torch.zeros(128)]))
    torch.testing.assert_close(
        out[1, [0, 128]],
        torch.tensor([7.0, 7.0])
        .sin()
        .new_tensor([torch.tensor(7.0).cos(), torch.tensor(7.0).sin()]),
    )


def test_positions_tell_x_in_the_first_half_and_y_in_the_second() -> None:
    grid = positions(4, 6, 16, base=4, interpolation=1.0).reshape(4, 6, 16)
    assert torch.equal(grid[0, :, :8], grid[3, :, :8])
    assert torch.equal(grid[:, 0, 8:], grid[:, 5, 8:])
    torch.testing.assert_close(grid[2, 0, 8], torch.tensor(2.0).sin())


def test_positions_span_the_same_range_on_any_grid() -> None:
    coarse = positions(4, 4, 16, base=8, interpolation=2.0).reshape(4, 4, 16)
    fine = positions(8, 8, 16, base=8, interpolation=2.0).reshape(8, 8, 16)
    torch.testing.assert_close(coarse, fine[::2, ::2])


def test_dropout_acts_in_training_only() -> None:
    attention = SelfAttention(32, 2, bias=False, qk_norm=False, dropout=0.5)
    tokens = torch.randn(1, 4, 32)
    assert (attention(tokens) == 0).any()
    assert not (F.dropout(attention.eval()(tokens), training=False) == 0).any()
