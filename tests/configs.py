"""Published config files, as their models have them."""

from typing import Any

SANA_600M: dict[str, Any] = {
    "_class_name": "SanaTransformer2DModel",
    "_diffusers_version": "0.32.0.dev0",
    "attention_bias": False,
    "attention_head_dim": 32,
    "caption_channels": 2304,
    "cross_attention_dim": 1152,
    "cross_attention_head_dim": 72,
    "dropout": 0.0,
    "in_channels": 32,
    "mlp_ratio": 2.5,
    "norm_elementwise_affine": False,
    "norm_eps": 1e-06,
    "num_attention_heads": 36,
    "num_cross_attention_heads": 16,
    "num_layers": 28,
    "out_channels": 32,
    "patch_size": 1,
    "sample_size": 32,
}

# What a damaged or hostile file may say in the place of any value.
HOSTILE = (
    0, -1, 10**9, 10**30, 1e308, float("nan"), float("inf"), "x", None, True, [], {}, [10**9],
    [0] * 6, [-1] * 6, ["x"] * 6, [[10**9]] * 6, [[0]] * 6, [[-5]] * 6, [[2]] * 6,
)  # fmt: skip
