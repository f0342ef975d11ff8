"""ControlNet: a trained copy of the first blocks conditions a frozen transformer on an image.

The condition is an image's latent. It enters the copied blocks through a projection, and their
output enters the transformer as residuals through one projection per block. These projections start
at zero ("zero convolutions", arXiv 2302.05543, section 3), so training starts from the unchanged
transformer. Names, config and the positions of the residuals are those of diffusers.

Shapes: B batch, C channels of the latent, H W its size, L image tokens, N text tokens, D channels
of the text encoder.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor, nn

from opensana.errors import ConfigError
from opensana.transformer.attention import BlockText
from opensana.transformer.conditioning import Moment
from opensana.transformer.config import TransformerConfig
from opensana.transformer.model import PreparedText, Stack, Transformer, together

CLASS_NAME = "SanaControlNetModel"
# Fields of a transformer that the published config of a ControlNet lacks.
UNKNOWN = ("guidance_embeds", "guidance_embeds_scale", "timestep_scale")
# Fields that must be equal in a ControlNet and its transformer.
SHARED = (
    *("in_channels", "num_attention_heads", "attention_head_dim", "caption_channels", "patch_size"),
    *("num_cross_attention_heads", "cross_attention_head_dim", "mlp_ratio", "qk_norm"),
)


@dataclass(frozen=True)
class ControlNetConfig(TransformerConfig):
    """The published `controlnet/config.json`; `num_layers` counts the copied blocks.

    `qk_norm` is written only if used: diffusers has no ControlNet with QK normalisation.
    """

    num_layers: int = 7

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.guidance_embeds or self.timestep_scale != 1:
            raise ConfigError(
                "a ControlNet takes neither an embedded guidance nor a timestep_scale, got "
                f"{self.guidance_embeds} and {self.timestep_scale:g}; Sprint models have none"
            )

    def to_dict(self) -> dict[str, Any]:
        """The content of the published `config.json`."""
        absent = UNKNOWN if self.qk_norm else (*UNKNOWN, "qk_norm")
        values = {name: value for name, value in super().to_dict().items() if name not in absent}
        return values | {"_class_name": CLASS_NAME}


class ControlNet(Stack):
    """The copied blocks and their projections, which are zero in a new one."""

    def __init__(self, config: ControlNetConfig) -> None:
        super().__init__(config)
        width, count = config.width, config.num_layers
        self.input_block = nn.Linear(width, width)
        self.controlnet_blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(count))
        for layer in (self.input_block, *self.controlnet_blocks):
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    @classmethod
    def of(cls, transformer: Transformer, blocks: int) -> "ControlNet":
        """A ControlNet to train: copies of the first blocks and of the embeddings."""
        config = control_config(transformer.config, blocks)
        control, state = cls(config), transformer.state_dict()
        new = {name: value for name, value in control.state_dict().items() if name not in state}
        copied = {name: state[name] for name in control.state_dict() if name in state}
        control.load_state_dict(copied | new)
        return control

    @property
    def trained(self) -> list[nn.Module]:
        """The modules that are trained; as published, the embeddings stay the transformer's."""
        return [self.transformer_blocks, self.input_block, self.controlnet_blocks]

    def embed(self, condition: Tensor) -> Tensor:
        """Project a condition [B, C, H, W] to tokens [B, L, width]."""
        return self.input_block(self._tokens(condition)[0])

    def forward(
        self,
        latent: Tensor,
        timestep: Tensor,
        text: Tensor,
        mask: Tensor | None,
        condition: Tensor,
    ) -> list[Tensor]:
        """The residuals [B, L, width], one per block; inputs as in `Transformer.forward`."""
        captions, mask = self._captions(text, mask)
        texts = [captions] * len(self.blocks)
        return self._residuals(latent, timestep, texts, mask, self.embed(condition))

    def residuals(
        self, latent: Tensor, timestep: Tensor | Moment, prepared: PreparedText, embedded: Tensor
    ) -> list[Tensor]:
        """As `forward`, with a text from `prepare_text` and a condition from `embed`."""
        return self._residuals(latent, timestep, prepared.blocks, prepared.mask, embedded)

    def _residuals(
        self,
        latent: Tensor,
        timestep: Tensor | Moment,
        texts: Sequence[BlockText],
        mask: Tensor | None,
        embedded: Tensor,
    ) -> list[Tensor]:
        tokens, grid = self._tokens(latent)
        tokens, residuals = tokens + embedded, []
        if isinstance(timestep, Tensor):
            timestep = self.moment(timestep)
        work = zip(self.blocks, timestep.blocks, texts, self.controlnet_blocks, strict=True)
        for block, modulation, text, project in work:
            tokens = block(tokens, modulation, text, mask, grid)
            residuals.append(project(tokens))
        return residuals


@dataclass(frozen=True)
class ControlledText:
    """The inputs that do not depend on the step: the text prepared for both networks, the embedded
    condition [B or 1, L, width] and its scale.
    """

    text: PreparedText
    control: PreparedText
    embedded: Tensor
    scale: float = 1.0

    @property
    def mask(self) -> Tensor | None:
        """That of the text, for both networks."""
        return self.text.mask

    def padded(self, lengths: Sequence[int]) -> "ControlledText":
        """As `PreparedText.padded`."""
        return replace(self, text=self.text.padded(lengths), control=self.control.padded(lengths))


class ControlledMoment(NamedTuple):
    """Timesteps as both networks are conditioned on them."""

    transformer: Moment
    control: Moment

    def row(self, index: int) -> "ControlledMoment":
        """One timestep, for all samples."""
        return ControlledMoment(self.transformer.row(index), self.control.row(index))


class Controlled(nn.Module):
    """A transformer with its ControlNet; ConfigError if the two do not fit."""

    def __init__(self, transformer: Transformer, control: ControlNet) -> None:
        super().__init__()
        check_pair(transformer.config, control.config)
        self.transformer, self.control = transformer, control

    @property
    def config(self) -> TransformerConfig:
        return self.transformer.config

    def forward(
        self, latent: Tensor, timestep: Tensor, text: Tensor, mask: Tensor | None, condition: Tensor
    ) -> Tensor:
        """Velocity [B, C, H, W]; inputs of `Transformer.forward`, and a condition like `latent`."""
        residuals = self.control(latent, timestep, text, mask, condition)
        return self.transformer(latent, timestep, text, mask, residuals=residuals)

    def prepare(
        self, text: Tensor, mask: Tensor | None, condition: Tensor, *, scale: float = 1.0
    ) -> ControlledText:
        """Prepare text [B, N, D] and condition [B, C, H, W] once for all steps."""
        return ControlledText(
            self.transformer.prepare_text(text, mask),
            self.control.prepare_text(text, mask),
            self.control.embed(condition),
            scale,
        )

    def fold(self, prepared: ControlledText) -> ControlledText:
        """Fold projections into short texts (`CrossAttention.fold`); for inference."""
        text, control = self.transformer.fold(prepared.text), self.control.fold(prepared.control)
        return replace(prepared, text=text, control=control)

    def moment(self, timestep: Tensor, guidance: Tensor | None = None) -> ControlledMoment:
        """Timesteps [B] as `velocity` takes them: see `Stack.moment`."""
        return ControlledMoment(
            self.transformer.moment(timestep, guidance), self.control.moment(timestep)
        )

    def together(self, texts: Sequence[ControlledText], rows: Sequence[int]) -> ControlledText:
        """Single prompts under one condition as the texts of one batch, each for its rows."""
        return replace(
            texts[0],
            text=together([text.text for text in texts], rows),
            control=together([text.control for text in texts], rows),
        )

    def velocity(
        self,
        latent: Tensor,
        timestep: Tensor | ControlledMoment,
        prepared: ControlledText,
        *,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """The velocity of one step, with the result of `prepare`, and maybe of `moment`."""
        if isinstance(timestep, Tensor):
            timestep = self.moment(timestep, guidance)
        found = self.control.residuals(
            latent, timestep.control, prepared.control, prepared.embedded
        )
        residuals = [prepared.scale * residual for residual in found]
        return self.transformer.velocity(
            latent, timestep.transformer, prepared.text, residuals=residuals
        )


def control_config(config: TransformerConfig, blocks: int) -> ControlNetConfig:
    """The config of a ControlNet with copies of the first `blocks`; ConfigError if impossible."""
    if config.guidance_embeds or config.timestep_scale != 1:
        raise ConfigError(
            "a Sprint model takes no ControlNet: it embeds its guidance; use another transformer"
        )
    if not 1 <= blocks < config.num_layers:
        raise ConfigError(
            f"a ControlNet copies 1 to {config.num_layers - 1} blocks of this transformer, which "
            f"has {config.num_layers}, got {blocks}"
        )
    return ControlNetConfig(**{**vars(config), "num_layers": blocks})


def check_pair(transformer: TransformerConfig, control: TransformerConfig) -> None:
    """ConfigError that names the first field in which the two differ."""
    control_config(transformer, control.num_layers)
    for name in SHARED:
        ours, theirs = getattr(transformer, name), getattr(control, name)
        if ours != theirs:
            raise ConfigError(
                f"the ControlNet was made for another transformer: its {name} is {theirs}, the "
                f"transformer's {ours}; name one that was trained with this model"
            )
