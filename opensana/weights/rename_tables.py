"""Rename tables: official `.pth` transformers and original DC-AE files to the published keys.

A key that no table knows is an error that lists the nearest known name, never a skipped tensor.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TypeVar

from torch import Tensor

from opensana.errors import WeightsError, near

# What stands before every name of a file: a wrapper's attribute, or the place in a whole model.
PREFIXES = (
    *("module.", "model.", "diffusion_model.", "model.diffusion_model.", "transformer."),
    *("first_stage_model.", "vae."),
)
# What compilation and sharding put anywhere into a name.
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# What an averaging wrapper counts beside the weights.
COUNTER = "n_averaged"
# Names that tell that a file has the published ones already.
PUBLISHED = ("transformer_blocks.", "encoder.down_blocks.", "decoder.up_blocks.")

# Official module -> published module. A parameter's last part (weight, bias) stays as it is.
TRANSFORMER: dict[str, str] = {
    "x_embedder.proj": "patch_embed.proj",
    "t_embedder.mlp.0": "time_embed.emb.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_embed.emb.timestep_embedder.linear_2",
    "t_block.1": "time_embed.linear",
    "y_embedder.y_proj.fc1": "caption_projection.linear_1",
    "y_embedder.y_proj.fc2": "caption_projection.linear_2",
    "attention_y_norm": "caption_norm",
    "final_layer.linear": "proj_out",
    "final_layer": "",
}

# Sprint: the time embedding also takes the guidance scale, and its parts are named differently.
SPRINT_TRANSFORMER: dict[str, str] = TRANSFORMER | {
    "t_embedder.mlp.0": "time_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_embed.timestep_embedder.linear_2",
    "cfg_embedder.mlp.0": "time_embed.guidance_embedder.linear_1",
    "cfg_embedder.mlp.2": "time_embed.guidance_embedder.linear_2",
}

# Inside `blocks.N` -> inside `transformer_blocks.N`; several targets share the rows equally.
TRANSFORMER_BLOCK: dict[str, tuple[str, ...]] = {
    "": ("",),
    "attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "attn.proj": ("attn1.to_out.0",),
    "attn.q_norm": ("attn1.norm_q",),
    "attn.k_norm": ("attn1.norm_k",),
    "cross_attn.q_linear": ("attn2.to_q",),
    "cross_attn.kv_linear": ("attn2.to_k", "attn2.to_v"),
    "cross_attn.q_norm": ("attn2.norm_q",),
    "cross_attn.k_norm": ("attn2.norm_k",),
    "cross_attn.proj": ("attn2.to_out.0",),
    "mlp.inverted_conv.conv": ("ff.conv_inverted",),
    "mlp.depth_conv.conv": ("ff.conv_depth",),
    "mlp.point_conv.conv": ("ff.conv_point",),
}

# Not part of the published model: the stored null caption, fixed positions, a training-only head.
TRANSFORMER_DROPPED = ("y_embedder.y_embedding", "pos_embed", "logvar_linear.")

# Original (efficientvit) module, without its `main` and `op_list` parts -> published module.
AUTOENCODER: dict[str, str] = {
    "encoder.project_in.conv": "encoder.conv_in",
    "encoder.project_in.conv.conv": "encoder.conv_in.conv",
    "encoder.project_out.0.conv": "encoder.conv_out",
    "decoder.project_in.conv": "decoder.conv_in",
    "decoder.project_out.0": "decoder.norm_out",
    "decoder.project_out.2.conv": "decoder.conv_out",
    "decoder.project_out.2.conv.conv": "decoder.conv_out.conv",
}

AUTOENCODER_STAGES = {"encoder": "encoder.down_blocks", "decoder": "decoder.up_blocks"}

# Inside `stages.S.N` -> inside `down_blocks.S.N` or `up_blocks.S.N`.
AUTOENCODER_BLOCK: dict[str, tuple[str, ...]] = {
    "conv": ("conv",),
    "conv.conv": ("conv",),
    "conv1.conv": ("conv1",),
    "conv2.conv": ("conv2",),
    "conv2.norm": ("norm",),
    "context_module.qkv.conv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "context_module.aggreg.0.0": ("attn.to_qkv_multiscale.0.proj_in",),
    "context_module.aggreg.0.1": ("attn.to_qkv_multiscale.0.proj_out",),
    "context_module.proj.conv": ("attn.to_out",),
    "context_module.proj.norm": ("attn.norm_out",),
    "local_module.inverted_conv.conv": ("conv_out.conv_inverted",),
    "local_module.depth_conv.conv": ("conv_out.conv_depth",),
    "local_module.point_conv.conv": ("conv_out.conv_point",),
    "local_module.point_conv.norm": ("conv_out.norm",),
}

# Stored as 1x1 convolutions, published as matrices.
AUTOENCODER_MATRICES = ("context_module.qkv.conv", "context_module.proj.conv")

Renamed = Iterator[tuple[str, Tensor]]
Target = TypeVar("Target", str, tuple[str, ...])
Value = TypeVar("Value")


def unwrapped(state: Mapping[str, Value]) -> dict[str, Value]:
    """The same tensors without what wrappers have put into their names, by the tables above.

    A prefix goes only where all names have it; several may follow one another.
    """
    names = {key: _join(*(p for p in key.split(".") if p not in WRAPPERS)) for key in state}
    names.pop(COUNTER, None)
    while prefix := _shared_prefix(names.values()):
        names = {key: name.removeprefix(prefix) for key, name in names.items()}
    if len(set(names.values())) < len(names):
        raise WeightsError("the file has some tensors twice, with a wrapper's names and without")
    return {name: state[key] for key, name in names.items()}


def _shared_prefix(names: Collection[str]) -> str | None:
    return next((p for p in PREFIXES if names and all(n.startswith(p) for n in names)), None)


def convert_transformer(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keys of an official transformer `.pth` -> published `SanaTransformer2DModel` keys.

    Published keys stay as they are.
    """
    sprint = any(key.startswith("cfg_embedder.") for key in state)
    table = SPRINT_TRANSFORMER if sprint else TRANSFORMER
    kept = {k: v for k, v in state.items() if not k.startswith(TRANSFORMER_DROPPED)}
    return _convert(kept, lambda key, tensor: _transformer_entry(key, tensor, table))


def convert_autoencoder(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keys of an original DC-AE file -> published `AutoencoderDC` keys, which stay as they are."""
    return _convert(state, _autoencoder_entry)


def _convert(
    state: Mapping[str, Tensor], entry: Callable[[str, Tensor], Renamed]
) -> dict[str, Tensor]:
    if any(key.startswith(PUBLISHED) for key in state):
        return dict(state)
    converted: dict[str, Tensor] = {}
    for key, tensor in state.items():
        for name, part in entry(key, tensor):
            if name in converted:
                raise WeightsError(f"two tensors of the file become {name!r}; one is {key!r}")
            converted[name] = part
    return converted


def _transformer_entry(key: str, tensor: Tensor, table: Mapping[str, str]) -> Renamed:
    module, _, leaf = key.rpartition(".")
    block = re.fullmatch(r"blocks\.(\d+)(?:\.(.+))?", module)
    if block is None:
        yield _join(_look_up(table, module, key), leaf), tensor
        return
    names = _look_up(TRANSFORMER_BLOCK, block[2] or "", key)
    for name, part in zip(names, _rows(tensor, len(names), key), strict=True):
        yield _join("transformer_blocks", block[1], name, leaf), part


def _autoencoder_entry(key: str, tensor: Tensor) -> Renamed:
    parts = [part for part in key.split(".") if part not in ("main", "op_list")]
    module, _, leaf = ".".join(parts).rpartition(".")
    stage = re.fullmatch(r"(encoder|decoder)\.stages\.(\d+)\.(\d+)\.(.+)", module)
    if stage is None:
        yield _join(_look_up(AUTOENCODER, module, key), leaf), tensor
        return
    names = _look_up(AUTOENCODER_BLOCK, stage[4], key)
    if stage[4] in AUTOENCODER_MATRICES:
        tensor = tensor.flatten(1)
    for name, part in zip(names, _rows(tensor, len(names), key), strict=True):
        yield _join(AUTOENCODER_STAGES[stage[1]], stage[2], stage[3], name, leaf), part


def _look_up(table: Mapping[str, Target], module: str, key: str) -> Target:
    if module not in table:
        hint = near(module, [name for name in table if name])
        raise WeightsError(f"the tensor {key!r} belongs to no known model{hint}")
    return table[module]


def _rows(tensor: Tensor, count: int, key: str) -> tuple[Tensor, ...]:
    if count == 1:
        return (tensor,)
    if tensor.ndim == 0 or tensor.shape[0] % count:
        raise WeightsError(f"{key!r} cannot be split in {count}: shape {tuple(tensor.shape)}")
    return tensor.chunk(count)


def _join(*parts: str) -> str:
    return ".".join(part for part in parts if part)
