"""The Linear DiT (paper 2.2): a velocity from a noisy latent, a timestep and a text.

Parameter names and shapes are those of the published files. What depends on the prompt alone
(`prepare_text`) is apart from what depends on the step (`velocity`).

Shapes: B batch, C channels of the latent (of a token inside), H W its size, N text tokens,
D channels of the text encoder.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from opensana.errors import RequestError
from opensana.layers.norm import RMSNorm
from opensana.transformer.attention import FoldedText, KeysValues
from opensana.transformer.block import Block, OutputNorm
from opensana.transformer.conditioning import (
    CaptionProjection,
    TimeEmbedding,
    TimeGuidanceEmbedding,
    kept_positions,
    pack,
    positions,
)
from opensana.transformer.config import TransformerConfig

__all__ = ["PreparedText", "Stack", "Transformer", "TransformerConfig"]

Residuals = Sequence[Tensor]
"""Tokens [B, N, width] to add behind the second block, the third, and so on."""


@dataclass(frozen=True)
class PreparedText:
    """A batch of prompts as the blocks use it: keys and values for each block, padding dropped.

    `mask` [B, N] is true at valid tokens, None where all are. A single prompt serves any batch.
    """

    blocks: tuple[KeysValues | FoldedText, ...]
    mask: Tensor | None


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
    """The embeddings and the blocks: what the transformer and a ControlNet have alike."""

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
        """What the network computes in; inputs are cast to it."""
        return self.patch_embed.proj.weight.dtype

    @property
    def blocks(self) -> Sequence[Block]:
        """The blocks, first to last."""
        return cast(Sequence[Block], self.transformer_blocks)

    def prepare_text(self, text: Tensor, mask: Tensor | None = None) -> PreparedText:
        """The work that a prompt [B, N, D] needs once, whatever the number of steps."""
        captions, mask = self._captions(text, mask)
        blocks = (block.attn2.keys_values(captions) for block in self.blocks)
        return PreparedText(tuple(blocks), mask)

    def fold(self, prepared: PreparedText) -> PreparedText:
        """The same text, cheaper to attend to over many steps; for inference."""
        folded = (
            block.attn2.fold(text) if isinstance(text, KeysValues) else text
            for block, text in zip(self.blocks, prepared.blocks, strict=True)
        )
        return PreparedText(tuple(folded), prepared.mask)

    def _captions(self, text: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        text, mask = pack(text.to(self.dtype), mask)
        return self.caption_norm(self.caption_projection(text)), mask

    def _tokens(self, latent: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """A latent [B, C, H, W] as placed tokens [B, N, width], and their grid."""
        grid = self._grid(latent)
        return self._place(self.patch_embed(latent.to(self.dtype)), grid), grid

    def _grid(self, latent: Tensor) -> tuple[int, int]:
        patch, (height, width) = self.config.patch_size, latent.shape[-2:]
        if height % patch or width % patch:
            raise RequestError(
                f"a latent's sides must be multiples of {patch}, got {height} x {width}"
            )
        return height // patch, width // patch

    def _place(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        config = self.config
        if config.interpolation_scale is None:
            return tokens
        base = config.sample_size // config.patch_size
        make = kept_positions if _can_keep(tokens) else positions
        places = make(
            *grid,
            config.width,
            base=base,
            interpolation=config.interpolation_scale,
            device=tokens.device,
        )
        return (tokens + places).to(tokens.dtype)

    def _condition(
        self, timestep: Tensor, guidance: Tensor | None, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        config = self.config
        if config.guidance_embeds != (guidance is not None):
            need = "needs" if config.guidance_embeds else "does not embed"
            raise RequestError(f"this transformer {need} the guidance scale as an input")
        if guidance is not None:
            guidance = guidance.reshape(-1).float() * config.guidance_embeds_scale
        timestep = timestep.reshape(-1).float() * config.timestep_scale
        return self.time_embed(timestep, guidance, dtype)


class Transformer(Stack):
    """Linear DiT. A new one holds arbitrary weights: load a state, or `initialise` it to train."""

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
        `velocity` with `prepare_text`, but each block makes its own keys and values, so that
        blocks can be sharded or recomputed.
        """
        captions, mask = self._captions(text, mask)
        texts = [captions] * len(self.blocks)
        return self._velocity(latent, timestep, texts, mask, guidance, residuals)

    def velocity(
        self,
        latent: Tensor,
        timestep: Tensor,
        prepared: PreparedText,
        *,
        guidance: Tensor | None = None,
        residuals: Residuals = (),
    ) -> Tensor:
        """One step: as `forward`, with a text from `prepare_text`."""
        texts, mask = prepared.blocks, prepared.mask
        return self._velocity(latent, timestep, texts, mask, guidance, residuals)

    def _velocity(
        self,
        latent: Tensor,
        timestep: Tensor,
        texts: Sequence[Tensor | KeysValues | FoldedText],
        mask: Tensor | None,
        guidance: Tensor | None,
        residuals: Residuals,
    ) -> Tensor:
        tokens, grid = self._tokens(latent)
        embedding, modulation = self._condition(timestep, guidance, tokens.dtype)
        for index, (block, text) in enumerate(zip(self.blocks, texts, strict=True)):
            tokens = block(tokens, modulation, text, mask, grid)
            if 0 < index <= len(residuals):
                tokens = tokens + residuals[index - 1].to(tokens.dtype)
        tokens = self.norm_out(tokens, embedding, self.scale_shift_table)
        return self._unpatchify(self.proj_out(tokens), grid).to(latent.dtype)

    def _unpatchify(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """[B, h * w, patch * patch * C] -> [B, C, H, W]."""
        patch = self.config.patch_size
        patches = tokens.unflatten(-1, (patch, patch, -1)).unflatten(1, grid)
        return patches.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def _can_keep(tokens: Tensor) -> bool:
    """Whether plain numbers fit to them: the compiler and fake tensors make their own."""
    return type(tokens) is Tensor and not tokens.is_meta and not torch.compiler.is_compiling()
