"""An autoencoder's configuration: the fields of the published `vae/config.json`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from opensana.autoencoder.resample import Down, Up
from opensana.config import build, check_bounds
from opensana.errors import ConfigError, near

Block = Literal["ResBlock", "EfficientViTBlock"]
Norm = Literal["batch_norm", "rms_norm"]
Activation = Literal["relu", "silu"]
CLASS_NAME = "AutoencoderDC"
MAX_STAGES = 10
MAX_LAYERS = 64
MAX_WIDTH = 16384
MAX_KERNEL = 31
# Config files are not trusted: numbers are bounded before anything is allocated.
BOUNDS: dict[str, tuple[float, float]] = {
    "in_channels": (1, 4096),
    "latent_channels": (1, MAX_WIDTH),
    "attention_head_dim": (1, 1024),
    "scaling_factor": (1e-6, 1e6),
}
SANA_WIDTHS = (128, 256, 512, 512, 1024, 1024)
SANA_BLOCKS: tuple[Block, ...] = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
SANA_SCALES: tuple[tuple[int, ...], ...] = ((), (), (), (5,), (5,), (5,))


@dataclass(frozen=True)
class AutoencoderConfig:
    """Field names are those of the published files; the defaults are `dc-ae-f32c32-sana-1.0`.

    A stage is one resolution, finest first. If the first stage has no layers, the stem is a
    downsampling to the second stage's width. `scaling_factor` brings latents to unit variance.
    """

    in_channels: int = 3
    latent_channels: int = 32
    attention_head_dim: int = 32
    encoder_block_types: tuple[Block, ...] = SANA_BLOCKS
    decoder_block_types: tuple[Block, ...] = SANA_BLOCKS
    encoder_block_out_channels: tuple[int, ...] = SANA_WIDTHS
    decoder_block_out_channels: tuple[int, ...] = SANA_WIDTHS
    encoder_layers_per_block: tuple[int, ...] = (2, 2, 2, 3, 3, 3)
    decoder_layers_per_block: tuple[int, ...] = (3, 3, 3, 3, 3, 3)
    encoder_qkv_multiscales: tuple[tuple[int, ...], ...] = SANA_SCALES
    decoder_qkv_multiscales: tuple[tuple[int, ...], ...] = SANA_SCALES
    upsample_block_type: Up = "interpolate"
    downsample_block_type: Down = "Conv"
    decoder_norm_types: tuple[Norm, ...] = ("rms_norm",) * 6
    decoder_act_fns: tuple[Activation, ...] = ("silu",) * 6
    decoder_conv_act_fn: Activation = "relu"
    encoder_out_shortcut: bool = True
    decoder_in_shortcut: bool = True
    scaling_factor: float = 0.41407

    def __post_init__(self) -> None:
        stages = len(self.encoder_block_out_channels)
        if not 2 <= stages <= MAX_STAGES:
            raise ConfigError(f"an autoencoder has 2 to {MAX_STAGES} stages, got {stages}")
        for name in STAGE_FIELDS:
            if len(getattr(self, name)) != stages:
                raise ConfigError(
                    f"{name} needs one entry for each of the {stages} stages, "
                    f"got {len(getattr(self, name))}"
                )
        check_bounds(self, BOUNDS)
        widths = self.encoder_block_out_channels + self.decoder_block_out_channels
        layers = self.encoder_layers_per_block + self.decoder_layers_per_block
        if not all(1 <= width <= MAX_WIDTH for width in widths):
            raise ConfigError(f"channel counts must be 1 to {MAX_WIDTH}, got {widths}")
        if not all(0 <= count <= MAX_LAYERS for count in layers):
            raise ConfigError(f"layers per block must be 0 to {MAX_LAYERS}, got {layers}")
        scales = sum(self.encoder_qkv_multiscales + self.decoder_qkv_multiscales, ())
        if not all(scale % 2 and 1 <= scale <= MAX_KERNEL for scale in scales):
            raise ConfigError(f"qkv scales must be odd and at most {MAX_KERNEL}, got {scales}")
        empty = [*self.encoder_layers_per_block[1:-1], *self.decoder_layers_per_block[1:-1]]
        if 0 in empty:
            raise ConfigError("only the first and the last stage may have no layers")

    @property
    def compression(self) -> int:
        """Pixels per latent position along a side: 32 for F32."""
        return 2 ** (len(self.encoder_block_out_channels) - 1)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "AutoencoderConfig":
        """From a published `config.json`; ConfigError for an unknown key or a wrong type."""
        given = {k: v for k, v in values.items() if not k.startswith("_")}
        known = {field.name for field in fields(cls)}
        for name in given:
            if name not in known:
                raise ConfigError(f"unknown autoencoder key {name!r}{near(name, known)}")
        merged = PUBLISHED_DEFAULTS | given
        widths = merged["encoder_block_out_channels"]
        if not isinstance(widths, list | tuple):
            raise ConfigError(f"encoder_block_out_channels must be a list, got {widths!r}")
        stages = len(widths)
        for name in STAGE_FIELDS:
            merged[name] = _per_stage(merged[name], stages)
        if merged["downsample_block_type"] != "pixel_unshuffle":
            merged["downsample_block_type"] = "Conv"
        return build(cls, merged, where="autoencoder config")

    def to_dict(self) -> dict[str, Any]:
        """The content of the published `config.json`."""
        return {"_class_name": CLASS_NAME, **asdict(self)}


STAGE_FIELDS = tuple(
    field.name
    for field in fields(AutoencoderConfig)
    if field.name.startswith(("encoder_", "decoder_"))
    and not field.name.endswith(("shortcut", "conv_act_fn"))
)

# The published format's defaults for absent keys; some differ from ours.
PUBLISHED_DEFAULTS: dict[str, Any] = {
    **asdict(AutoencoderConfig()),
    "encoder_block_types": "ResBlock",
    "decoder_block_types": "ResBlock",
    "upsample_block_type": get_args(Up)[1],
    "downsample_block_type": get_args(Down)[1],
    "scaling_factor": 1.0,
}


def _per_stage(value: Any, stages: int) -> tuple[Any, ...]:
    if isinstance(value, str):
        return (value,) * stages
    if not isinstance(value, list | tuple):
        raise ConfigError(f"a list with an entry for each stage was expected, got {value!r}")
    return tuple(tuple(entry) if isinstance(entry, list) else entry for entry in value)
