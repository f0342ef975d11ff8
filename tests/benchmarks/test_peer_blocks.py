"""The blocks of the headline multiply what `opensana cost` counts, and what their papers say."""

from collections.abc import Callable

import pytest
import torch

from benchmarks.headline import OURS, PEERS
from benchmarks.headline_parts import ATTENTIONS, PARTS
from benchmarks.paper_speed import LIKELY, PEAK, impossible, rate
from benchmarks.peer_blocks import (
    DoubleBlock,
    PixArtBlock,
    SingleBlock,
    rotary_turns,
    turned_,
)
from opensana.evaluate.cost.catalogue import PAINTERS
from opensana.evaluate.cost.peers import Flux, PixArt, StableDiffusion3, tokens_of
from opensana.evaluate.cost.sheet import Sheet, counted

META = torch.device("meta")


def sheet(name: str, size: int) -> Sheet:
    with META:
        block, call = PARTS[name].build()
        run = call(size)
    return counted(block, run)


@pytest.mark.parametrize("size", [512, 4096])
@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("flux-dev.double", Flux().double_block),
        ("flux-dev.single", Flux().single_block),
        ("sd3-medium.block", StableDiffusion3().block),
        ("pixart-sigma.block", PixArt().block),
    ],
)
def test_blocks_multiply_what_the_sheet_counts(
    name: str, counts: Callable[[int, int], Sheet], size: int
) -> None:
    found = sheet(name, size)
    expected = counts(tokens_of(size), PAINTERS[PARTS[name].model].text_tokens)
    assert found.macs == pytest.approx(expected.macs, rel=0.01)
    assert found.parameters == pytest.approx(expected.parameters, rel=0.01)


@pytest.mark.parametrize("size", [512, 4096])
@pytest.mark.parametrize("model", [*PEERS, *OURS])
def test_all_blocks_are_nearly_the_whole_forward_pass(model: str, size: int) -> None:
    parts = {name: part for name, part in PARTS.items() if part.model == model}
    macs = sum(part.count * sheet(name, size).macs for name, part in parts.items())
    assert macs == pytest.approx(PAINTERS[model].forward(size).macs, rel=0.015)


@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention_alone_is_that_of_the_block(name: str) -> None:
    """A block's products but its self-attention are linear in tokens."""
    blocks = [block for block, part in PARTS.items() if part.attention == name]
    for block in blocks:
        rest = []
        for size in (2048, 4096):
            with META:
                part = ATTENTIONS[name]
                run = part.call(size, part.heads)
                alone = counted(torch.nn.Identity(), run).macs
            rest.append((sheet(block, size).macs - alone) / part.tokens(size))
        assert rest[0] == pytest.approx(rest[1], rel=0.02)


@torch.inference_mode()
def test_blocks_run_and_see_their_texts() -> None:
    """Small ones, with real numbers."""
    torch.manual_seed(0)
    tokens, text, condition = torch.randn(1, 6, 16), torch.randn(1, 3, 16), torch.randn(1, 16)
    flux, sd3 = DoubleBlock(16, 2, normed=True), DoubleBlock(16, 2, normed=False)
    single, pixart = SingleBlock(16, 2), PixArtBlock(16, 2)
    turns, modulation = rotary_turns(9, 8), torch.randn(1, 6, 16)
    calls = [
        lambda words: flux(tokens, words, condition, turns)[0],
        lambda words: sd3(tokens, words, condition)[0],
        lambda words: single(torch.cat([words, tokens], 1), condition, turns)[:, 3:],
        lambda words: pixart(tokens, modulation, words),
    ]
    for call in calls:
        drawn = call(text)
        assert drawn.shape == tokens.shape and drawn.isfinite().all()
        assert not torch.allclose(drawn, call(-text))


@torch.inference_mode()
def test_turns_keep_lengths_and_relative_positions() -> None:
    """A turned query and key have the product that their distance gives."""
    query, key = torch.randn(2, 1, 1, 1, 8).expand(2, 1, 1, 5, 8)
    turns = rotary_turns(5, 8)
    queries, keys = turned_(query.clone(), turns), turned_(key.clone(), turns)
    scores = (queries @ keys.transpose(-1, -2))[0, 0]
    for distance in range(3):
        along = scores.diagonal(distance)
        torch.testing.assert_close(along, along[:1].expand_as(along))
    torch.testing.assert_close(queries.norm(dim=-1), query.norm(dim=-1))


def test_one_printed_latency_is_beyond_the_device() -> None:
    assert impossible() == [*LIKELY] == [(4096, "sana-1.6b")]
    assert rate("sana-1.6b", 4096, 5.9) == pytest.approx(332, rel=0.01)
    assert rate("sana-1.6b", 4096, LIKELY[4096, "sana-1.6b"]) < PEAK / 2
