"""The latent discriminator of SANA-Sprint (arXiv 2503.09641, 3.3; LADD, arXiv 2403.12015).

Heads on the frozen teacher's blocks tell latents of the data from guesses of the student. Both are
noised anew before: at high noise the heads see what is drawn, at low noise how.

B samples, N tokens, C channels of a token, h w latent size.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from opensana.train.recipe import HEAD_GROUPS, require
from opensana.transformer.model import Transformer


class Head(nn.Module):
    """Tokens [B, N, C] of a block, laid out as [B, C, h, w] -> logits [B, 1, h, w]."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, elementwise_affine=False)
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 1),
            nn.GroupNorm(HEAD_GROUPS, width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(HEAD_GROUPS, width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 1, 1),
        )

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        return self.layers(self.norm(tokens).transpose(1, 2).unflatten(2, grid)).float()


class LatentDiscriminator(nn.Module):
    """One head for each of some blocks; the teacher is not a part of it."""

    def __init__(self, channels: int, *, blocks: Sequence[int], width: int) -> None:
        super().__init__()
        self.blocks = tuple(blocks)
        self.heads = nn.ModuleList(Head(channels, width) for _ in blocks)

    def forward(self, tokens: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
        """Logits [B, heads * h * w] from the tokens behind its blocks."""
        logits = [head(part, grid) for head, part in zip(self.heads, tokens, strict=True)]
        return torch.cat([part.flatten(1) for part in logits], dim=1)


@contextmanager
def tokens_behind(teacher: Transformer, blocks: Sequence[int]) -> Iterator[list[Tensor]]:
    """A list that the teacher's next pass fills with the tokens [B, N, C] behind some blocks."""
    found: list[Tensor] = []

    def keep(module: nn.Module, inputs: object, tokens: Tensor) -> None:
        found.append(tokens)

    hooks = [teacher.blocks[block].register_forward_hook(keep) for block in sorted(blocks)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def check_blocks(teacher: Transformer, blocks: Sequence[int]) -> None:
    """ConfigError unless the teacher has these blocks, in rising order."""
    last = len(teacher.blocks) - 1
    rising = list(blocks) == sorted(set(blocks))
    require(
        len(blocks) > 0 and rising and 0 <= blocks[0] <= blocks[-1] <= last,
        "adversary.blocks",
        list(blocks),
        f"rising numbers of the teacher's blocks, from 0 to {last}",
    )
