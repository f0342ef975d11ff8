"""The Linear DiT (paper 2.2): noisy latent, timestep and prompt embeddings to a velocity.

Parameter names and shapes are those of the published files. The work per prompt (`prepare_text`) is
separate from the work per step (`velocity`).

Shapes: B batch, C channels of the latent (of a token inside), H W its size, N text tokens,
D channels of the text encoder.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opensana.errors import RequestError
from opensana.layers.norm import RMSNorm
from opensana.transformer.attention import BlockText, FoldedText, KeysValues, SeveralTexts
from opensana.transformer.block import Block, OutputNorm
from opensana.transformer.conditioning import (
    CaptionProjection,
    Moment,
    TimeEmbedding,
    TimeGuidanceEmbedding,
    drop_padding,
    kept_positions,
    positions,
)
from opensana.transformer.config import TransformerConfig

__all__ = ["PreparedText", "Stack", "Transformer", "TransformerConfig"]

Residuals = Sequence[Tensor]
"""Tokens [B, N, width] that are added after the second block, the third, and so on."""


@dataclass(frozen=True)
class PreparedText:
    """A batch of prompts: the keys and values of each block, without padding.

    `mask` [B, N] is true at valid tokens, or None if all are. A single prompt serves any batch.
    """

    blocks: tuple[KeysValues | FoldedText | SeveralTexts, ...]
    mask: Tensor | None

    @property
    def separate(self) -> tuple[KeysValues | FoldedText, ...]:
        """The blocks of a batch that `together` has not joined."""
        assert not any(isinstance(block, SeveralTexts) for block in self.blocks)
        return cast("tuple[KeysValues | FoldedText, ...]", self.blocks)

    def padded(self, lengths: Sequence[int]) -> "PreparedText":
        """With keys and values up to the next of some ascending lengths, which a mask leaves out:
        texts of one shape. Not for a folded one.
        """
        blocks = cast("tuple[KeysValues, ...]", self.separate)
        keys = blocks[0].keys
        count, mask = keys.shape[2], self.mask
        if mask is None:
            mask = torch.ones(len(keys), count, dtype=torch.bool, device=keys.device)
        more = next((n for n in lengths if n >= count), count) - count
        longer = (
            KeysValues(*(F.pad(part, (0, 0, 0, more)).contiguous() for part in block))
            for block in blocks
        )
        return PreparedText(tuple(longer), F.pad(mask, (0, more)))


def together(texts: Sequence[PreparedText], rows: Sequence[int]) -> PreparedText:
    """Texts of one batch, each for its number of rows: of one prompt, or of as many prompts.

    Every row is attended to as if it were alone.
    """
    masks = tuple(text.mask for text in texts)
    blocks = zip(*(text.blocks for text in texts), strict=True)
    joined = (SeveralTexts(cast("tuple", block), tuple(rows), masks) for block in blocks)
    return PreparedText(tuple(joined), None)


class PatchEmbedding(nn.Module):
    """Latent [B, C, H, W] -> tokens [B, H * W / patch^2, width]."""

    def __init__(self, in_channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, patch, stride=patch)

    def forward(self, latent: Tensor) -> Tensor:
        # A sum keeps the memory layout of its first operand: without this copy every later
        # `tokens + branch` would be strided.
        return self.proj(latent).flatten(2).transpose(1, 2).contiguous()


class Stack(nn.Module):
    """Embeddings and blocks, shared by the transformer and a ControlNet."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config: TransformerConfig = config
        width = config.width
        self.patch_embed = PatchEmbedding(config.in_channels, width, config.patch_size)
        time_embedding = TimeGuidanceEmbedding if config.guidance_embeds else TimeEmbedding
        self.time_embed = time_embedding(width)
        self.caption_projection = CaptionProjection(config.caption_channels, width)
        self.caption_norm = RMSNorm(width)
        self.transformer_blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the computation; inputs are cast to it."""
        return self.caption_norm.weight.dtype

    @property
    def blocks(self) -> Sequence[Block]:
        """The blocks, first to last."""
        return cast(Sequence[Block], self.transformer_blocks)

    def prepare_text(self, text: Tensor, mask: Tensor | None = None) -> PreparedText:
        """Compute each block's keys and values of a prompt [B, N, D], once for all steps."""
        captions, mask = self._captions(text, mask)
        blocks = (block.attn2.keys_values(captions) for block in self.blocks)
        return PreparedText(tuple(blocks), mask)

    def fold(self, prepared: PreparedText) -> PreparedText:
        """Fold projections into a short text (`CrossAttention.fold`), and its mask; for inference.

        A mask is folded in once, not at each step, where all blocks have taken the text so.
        """
        mask, folded = (
            prepared.mask,
            [
                block.fold(text) if isinstance(text, KeysValues) else text
                for block, text in zip(self.blocks, prepared.blocks, strict=True)
            ],
        )
        if mask is not None and all(isinstance(text, FoldedText) for text in folded):
            folded = [cast(FoldedText, text).masked(mask) for text in folded]
            mask = None
        return PreparedText(tuple(folded), mask)

    def _captions(self, text: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        text, mask = drop_padding(text.to(self.dtype), mask)
        return self.caption_norm(self.caption_projection(text)), mask

    def _tokens(self, latent: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """A latent [B, C, H, W] as tokens [B, N, width] with their positions, and their grid."""
        config, (height, width) = self.config, latent.shape[-2:]
        patch = config.patch_size
        if height % patch or width % patch:
            raise RequestError(
                f"a latent's sides must be multiples of {patch}, got {height} x {width}"
            )
        grid = height // patch, width // patch
        tokens = self.patch_embed(latent.to(self.dtype))
        if config.interpolation_scale is None:
            return tokens, grid
        # The compiler and fake tensors cannot use a cached plain tensor.
        plain = type(tokens) is Tensor and not tokens.is_meta
        embed = kept_positions if plain and not torch.compiler.is_compiling() else positions
        embedded = embed(
            *grid,
            config.width,
            base=config.sample_size // patch,
            interpolation=config.interpolation_scale,
            device=tokens.device,
        )
        return (tokens + embedded).to(tokens.dtype), grid

    def moment(self, timestep: Tensor, guidance: Tensor | None = None) -> Moment:
        """Timesteps [B], and the guidance [B or 1] of models that embed it, as `velocity` takes
        them; of all steps at once, before the first.

        On an accelerator a copy from the host does not wait for the work before it.
        """
        config, device = self.config, self.caption_norm.weight.device
        if config.guidance_embeds != (guidance is not None):
            need = "needs" if config.guidance_embeds else "does not embed"
            raise RequestError(f"this transformer {need} the guidance scale as an input")
        if guidance is not None:
            guidance = guidance.reshape(-1).float().to(device, non_blocking=True)
            guidance = guidance * config.guidance_embeds_scale
        timestep = timestep.reshape(-1).float().to(device, non_blocking=True)
        timestep = timestep * config.timestep_scale
        embedding, modulation = self.time_embed(timestep, guidance, self.dtype)
        return Moment(embedding, [block.settle(modulation) for block in self.blocks])


class Transformer(Stack):
    """Linear DiT. The weights of a new one are arbitrary: load a state dict, or `initialise` it."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        width = config.width
        self.scale_shift_table = nn.Parameter(torch.zeros(2, width))
        self.norm_out = OutputNorm()
        self.proj_out = nn.Linear(width, config.patch_size**2 * config.output_channels)

    def forward(
        self,
        latent: Tensor,
        timestep: Tensor,
        text: Tensor,
        mask: Tensor | None = None,
        *,
        guidance: Tensor | None = None,
        residuals: Residuals = (),
    ) -> Tensor:
        """Velocity [B, C, H, W] from latent [B, C, H, W], timestep [B] in 0..1000 and text.

        `text` is [B, N, D]; `mask` [B, N] is true at valid tokens (None: all). `guidance` [B] is
        the scale itself, for models that embed it; `residuals` are a ControlNet's. Equal to
        `velocity` with `prepare_text`, but each block computes its own keys and values, as FSDP and
        activation checkpointing need.
        """
        captions, mask = self._captions(text, mask)
        texts = [captions] * len(self.blocks)
        return self._velocity(latent, timestep, texts, mask, guidance, residuals)

    def velocity(
        self,
        latent: Tensor,
        timestep: Tensor | Moment,
        prepared: PreparedText,
        *,
        guidance: Tensor | None = None,
        residuals: Residuals = (),
    ) -> Tensor:
        """As `forward`, with a text from `prepare_text`, and maybe a moment of `moment`."""
        texts, mask = prepared.blocks, prepared.mask
        return self._velocity(latent, timestep, texts, mask, guidance, residuals)

    def together(self, texts: Sequence[PreparedText], rows: Sequence[int]) -> PreparedText:
        """Single prompts as the texts of one batch, each for its number of rows."""
        return together(texts, rows)

    def _velocity(
        self,
        latent: Tensor,
        timestep: Tensor | Moment,
        texts: Sequence[BlockText],
        mask: Tensor | None,
        guidance: Tensor | None,
        residuals: Residuals,
    ) -> Tensor:
        tokens, grid = self._tokens(latent)
        if isinstance(timestep, Tensor):
            timestep = self.moment(timestep, guidance)
        work = zip(self.blocks, timestep.blocks, texts, strict=True)
        for index, (block, modulation, text) in enumerate(work):
            tokens = block(tokens, modulation, text, mask, grid)
            if 0 < index <= len(residuals):
                tokens = tokens + residuals[index - 1].to(tokens.dtype)
        tokens = self.norm_out(tokens, timestep.embedding, self.scale_shift_table)
        # Unpatchify: [B, h * w, patch * patch * C] -> [B, C, H, W].
        patch = self.config.patch_size
        patches = self.proj_out(tokens).unflatten(-1, (patch, patch, -1)).unflatten(1, grid)
        return patches.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3).to(latent.dtype)
