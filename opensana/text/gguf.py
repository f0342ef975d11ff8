"""Gemma 2 and 3 from GGUF files: their configuration and weights under the published names.

Matrices stay in the 8 bits of their blocks (`layers/weight_only.py`), with the very numbers that
dequantising would give. A GGUF has Gemma's norms as they are multiplied; the published files have
what is added to one.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opensana.errors import WeightsError
from opensana.text.gemma3_config import FULL, SLIDING
from opensana.weights.gguf import GgufFile

SUFFIX = ".gguf"
FULL_EVERY = {"gemma2": 2, "gemma3": 6}
"""Of so many layers the last one attends to all tokens."""
LAYERS_OF_27B = {"gemma2": 46, "gemma3": 62}
"""Models of 27B scale attention by the width of a head, hidden / heads, not by `key_length`."""
THETA = 10_000.0
TENSORS = {"token_embd": "embed_tokens", "output_norm": "norm"}
LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "post_feedforward_layernorm",
}
HEAD = "output.weight"


def gguf_in(source: Path) -> Path | None:
    """The GGUF file that a path is, or that a folder without safetensors holds."""
    if source.suffix == SUFFIX and source.is_file():
        return source
    found = sorted(source.glob("*" + SUFFIX))
    if not found or any(source.glob("*.safetensors")):
        return None
    if len(found) > 1:
        raise WeightsError(f"{source} holds several GGUF files; leave one, not {len(found)}")
    return found[0]


def read_config(file: GgufFile) -> dict[str, Any]:
    """What the published config.json of the model says."""
    kind = file.metadata.get("general.architecture")
    if kind not in FULL_EVERY:
        raise WeightsError(f"{file.path} holds {kind!r}; of GGUF files gemma2 and gemma3 are read")

    def value(name: str, default: float | None = None) -> Any:
        found = file.metadata.get(f"{kind}.{name}", default)
        if isinstance(found, bool) or not isinstance(found, int | float):
            raise WeightsError(f"{file.path}: {kind}.{name} must be a number, got {found!r}")
        return found

    layers, every = value("block_count"), FULL_EVERY[kind]
    hidden, heads, size = (
        value(name) for name in ("embedding_length", "attention.head_count", "attention.key_length")
    )
    wide = layers == LAYERS_OF_27B[kind] and heads
    embedding = file.tensors.get("token_embd.weight")
    common = {
        "hidden_size": hidden,
        "intermediate_size": value("feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": value("attention.head_count_kv"),
        "head_dim": size,
        "rms_norm_eps": value("attention.layer_norm_rms_epsilon"),
        "query_pre_attn_scalar": hidden / heads if wide else size,
        "sliding_window": value("attention.sliding_window"),
        "max_position_embeddings": value("context_length"),
        "hidden_activation": "gelu_pytorch_tanh",
        "vocab_size": embedding.shape[0] if embedding else 0,
        "pad_token_id": file.metadata.get("tokenizer.ggml.padding_token_id"),
        "tie_word_embeddings": HEAD not in file.tensors,
        "layer_types": [SLIDING if (i + 1) % every else FULL for i in range(min(layers, 2**10))],
    }
    theta = value("rope.freq_base", THETA)
    if kind == "gemma2":
        return common | {
            "architectures": ["Gemma2Model"],
            "model_type": "gemma2",
            "attn_logit_softcapping": value("attn_logit_softcapping", 50.0),
            "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        }
    scaling = {"rope_type": "default"}
    if file.metadata.get("gemma3.rope.scaling.type", "none") != "none":
        scaling = {"rope_type": "linear", "factor": value("rope.scaling.factor")}
    return common | {
        "architectures": ["Gemma3TextModel"],
        "model_type": "gemma3_text",
        "rope_parameters": {
            FULL: {**scaling, "rope_theta": theta},
            SLIDING: {"rope_type": "default", "rope_theta": THETA},
        },
    }


def read_state(file: GgufFile) -> dict[str, Tensor]:
    """The decoder's tensors by their published names; the head's are left out.

    A matrix in blocks is three: `weight` in int8, `weight_scale`, and `weight_minimum` if it has.
    """
    state: dict[str, Tensor] = {}
    for name, found in file.tensors.items():
        if name == HEAD:
            continue
        own = published_name(name)
        if found.format.decode is None:
            plain = file.plain(name)
            state[own] = plain - 1 if own.endswith("norm.weight") else plain
            continue
        values, scale, minimum = file.blocks(name)
        state |= {own: values, f"{own}_scale": scale}
        state |= {} if minimum is None else {f"{own}_minimum": minimum}
    return state


def published_name(name: str) -> str:
    """`layers.0.mlp.up_proj.weight` for `blk.0.ffn_up.weight`; an unknown name stays as it is."""
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight)", name)
    if match is None:
        return name
    layer, part, kind = match.groups()
    names: Mapping[str, str] = TENSORS if layer is None else LAYER_TENSORS
    if part not in names:
        return name
    return ".".join(filter(None, [layer and f"layers.{layer}", names[part], kind]))


def held_bytes(file: GgufFile, dtype: torch.dtype) -> int:
    """What the model takes in memory; numbers that are plain in the file are held in `dtype`."""
    return sum(
        tensor.size // tensor.format.numbers * (tensor.format.held or dtype.itemsize)
        for tensor in file.tensors.values()
    )


def formats_in(file: GgufFile) -> list[str]:
    """The names of a file's formats, that of the most numbers first."""
    totals: dict[str, int] = {}
    for tensor in file.tensors.values():
        totals[tensor.format.name] = totals.get(tensor.format.name, 0) + tensor.size
    return sorted(totals, key=lambda name: -totals[name])
