"""A transformer's configuration: the fields of the published `transformer/config.json`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self

from opensana.config import build, check_bounds
from opensana.errors import ConfigError, near

CLASS_NAME = "SanaTransformer2DModel"
QK_NORM = "rms_norm_across_heads"
MAX_WIDTH = 16384

# Config files are not trusted: sizes are bounded before anything is allocated.
BOUNDS: dict[str, tuple[float, float]] = {
    "in_channels": (1, 4096),
    "out_channels": (1, 4096),
    "num_attention_heads": (1, 1024),
    "attention_head_dim": (1, 1024),
    "num_layers": (1, 256),
    "num_cross_attention_heads": (1, 1024),
    "cross_attention_head_dim": (1, 1024),
    "caption_channels": (1, 65536),
    "mlp_ratio": (0.01, 32),
    "dropout": (0, 0.99),
    "sample_size": (1, 4096),
    "patch_size": (1, 64),
    "norm_eps": (1e-12, 1e-1),
    "interpolation_scale": (1e-3, 1e3),
    "guidance_embeds_scale": (1e-6, 1e6),
    "timestep_scale": (1e-6, 1e6),
}
OPTIONAL = ("out_channels", "interpolation_scale")


@dataclass(frozen=True)
class TransformerConfig:
    """Field names and defaults of the published files; the defaults are Sana 1.6B.

    `sample_size` is the side of the native latent. `interpolation_scale` turns on position
    embeddings (2K and 4K models). The model multiplies the timestep by `timestep_scale` and an
    embedded guidance by `guidance_embeds_scale`.
    """

    in_channels: int = 32
    out_channels: int | None = 32
    num_attention_heads: int = 70
    attention_head_dim: int = 32
    num_layers: int = 20
    num_cross_attention_heads: int = 20
    cross_attention_head_dim: int = 112
    cross_attention_dim: int = 2240
    caption_channels: int = 2304
    mlp_ratio: float = 2.5
    dropout: float = 0.0
    attention_bias: bool = False
    sample_size: int = 32
    patch_size: int = 1
    norm_elementwise_affine: bool = False
    norm_eps: float = 1e-6
    interpolation_scale: float | None = None
    guidance_embeds: bool = False
    guidance_embeds_scale: float = 0.1
    qk_norm: str | None = None
    timestep_scale: float = 1.0

    def __post_init__(self) -> None:
        check_bounds(self, BOUNDS, optional=OPTIONAL)
        if max(self.width, self.cross_width) > MAX_WIDTH:
            raise ConfigError(
                f"heads x head size must be at most {MAX_WIDTH}, got {self.width} "
                f"and {self.cross_width} for the cross-attention"
            )
        if self.cross_attention_dim != self.width:
            raise ConfigError(
                f"cross_attention_dim must be num_attention_heads x attention_head_dim = "
                f"{self.width}, the width of the projected text, got {self.cross_attention_dim}"
            )
        if self.interpolation_scale is not None and self.width % 4:
            raise ConfigError(f"fixed positions need a width divisible by 4, got {self.width}")
        if self.patch_size > self.sample_size:
            raise ConfigError(
                f"patch_size {self.patch_size} is larger than sample_size {self.sample_size}"
            )
        if self.qk_norm not in (None, QK_NORM):
            raise ConfigError(f"qk_norm must be null or {QK_NORM!r}, got {self.qk_norm!r}")

    @property
    def width(self) -> int:
        """C, the channels of a token."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def cross_width(self) -> int:
        """The channels of the cross-attention's queries, keys and values."""
        return self.num_cross_attention_heads * self.cross_attention_head_dim

    @property
    def hidden(self) -> int:
        """The channels inside the Mix-FFN."""
        return int(self.mlp_ratio * self.width)

    @property
    def positions(self) -> Literal["none", "sin-cos"]:
        """The position embedding that is added to the tokens."""
        return "none" if self.interpolation_scale is None else "sin-cos"

    @property
    def output_channels(self) -> int:
        """The velocity's channels: those of the latent unless stated."""
        return self.out_channels or self.in_channels

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From a published `config.json`; ConfigError for an unknown key or a wrong type."""
        given = {name: value for name, value in values.items() if not name.startswith("_")}
        known = [field.name for field in fields(cls)]
        for name in given:
            if name not in known:
                raise ConfigError(f"unknown transformer key {name!r}{near(name, known)}")
        return build(cls, given, where="transformer config")

    def to_dict(self) -> dict[str, Any]:
        """The content of the published `config.json`."""
        return {"_class_name": CLASS_NAME, **asdict(self)}
