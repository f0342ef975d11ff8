"""The config.json of a Gemma 3 decoder."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from opensana.config import build, check_bounds
from opensana.errors import ConfigError

MODEL_TYPE = "gemma3_text"
SLIDING, FULL = "sliding_attention", "full_attention"
# Options that Gemma3TextModel does not implement, with the only value that it takes.
ABSENT = {
    "attention_bias": False,
    "attn_logit_softcapping": None,
    "hidden_activation": "gelu_pytorch_tanh",
    "use_bidirectional_attention": False,
}
# Config files are not trusted: sizes are bounded before anything is allocated.
BOUNDS: dict[str, tuple[float, float]] = {
    "vocab_size": (1, 2**22),
    "hidden_size": (1, 65536),
    "intermediate_size": (1, 2**20),
    "num_attention_heads": (1, 1024),
    "num_key_value_heads": (1, 1024),
    "head_dim": (2, 4096),
    "rms_norm_eps": (1e-12, 1e-1),
    "query_pre_attn_scalar": (1e-6, 1e6),
    "sliding_window": (1, 2**24),
}
MOST_LAYERS = 256
LARGEST_THETA = 1e12


@dataclass(frozen=True)
class Gemma3Config:
    """Field names are those of the file; `source` is the whole file, for writing it back."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    query_pre_attn_scalar: float
    sliding_window: int
    layer_types: tuple[str, ...]
    rope_theta: dict[str, float]
    """The base of the rotary position embedding, by layer type."""
    pad_token_id: int | None = None
    source: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        check_bounds(self, BOUNDS)
        for theta in self.rope_theta.values():
            if not 1e-6 <= theta <= LARGEST_THETA:
                raise ConfigError(f"rope_theta must be 1e-06 to {LARGEST_THETA:g}, got {theta}")
        if not 1 <= len(self.layer_types) <= MOST_LAYERS:
            raise ConfigError(f"1 to {MOST_LAYERS} layers are read, got {len(self.layer_types)}")
        if self.num_attention_heads % self.num_key_value_heads or self.head_dim % 2:
            raise ConfigError(
                "num_key_value_heads must divide num_attention_heads, and head_dim be even, got "
                f"{self.num_key_value_heads}, {self.num_attention_heads} and {self.head_dim}"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Gemma3Config | None":
        """None if the model is another one or uses options that are not implemented.

        ConfigError if a number is missing or out of bounds.
        """
        if not _is_implemented(values):
            return None
        numbers = {one.name: values[one.name] for one in fields(cls) if one.name in values}
        ropes = values["rope_parameters"].items()
        numbers["rope_theta"] = {kind: rope.get("rope_theta") for kind, rope in ropes}
        numbers["source"] = {}
        return replace(build(cls, numbers, where="the text encoder's config.json"), source=values)


def _is_implemented(values: Mapping[str, Any]) -> bool:
    ropes, layers = values.get("rope_parameters"), values.get("layer_types")
    if values.get("model_type") != MODEL_TYPE or not isinstance(layers, list):
        return False
    if not isinstance(ropes, dict) or not all(isinstance(rope, dict) for rope in ropes.values()):
        return False
    return (
        all(kind in (SLIDING, FULL) and kind in ropes for kind in layers)
        and all(rope.get("rope_type") == "default" for rope in ropes.values())
        and all(values.get(name, usual) == usual for name, usual in ABSENT.items())
    )
