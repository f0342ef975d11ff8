"""GGUF files of small random Gemmas, for tests."""

from pathlib import Path
from typing import Any

import gguf
import torch
from transformers import (
    Gemma2Config,
    Gemma2Model,
    Gemma3TextConfig,
    Gemma3TextModel,
    PreTrainedModel,
)

from opensana.text.gguf import LAYER_TENSORS, TENSORS

WORDS = [*"abcdefghij▁猫", "ab", "abc", "▁a", "▁ab", "cd", "▁▁猫", "  ", "    "]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
TOKENS = ["<pad>", "<eos>", "<bos>", "<unk>", *BYTES, *WORDS, "<b>"]
KINDS = [3, 3, 3, 2, *[6] * 256, *[1] * (len(WORDS) - 2), 4, 4, 4]
FORMATS = ("Q8_0", "Q5_0", "Q4_0", "F16", "BF16")
SIZES: dict[str, Any] = {
    "vocab_size": len(TOKENS),
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 2048,
    "sliding_window": 8,
    "query_pre_attn_scalar": 32,
}
ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 20_000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
}


def model(kind: str) -> PreTrainedModel:
    """A random decoder: Gemma 3 as ours reads it, with scaled positions as transformers does."""
    torch.manual_seed(0)
    if kind == "gemma2":
        made = Gemma2Model(Gemma2Config(**SIZES, num_hidden_layers=3))
    else:
        layers = ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"]
        plain = {name: {**rope, "rope_type": "default"} for name, rope in ROPE.items()}
        ropes = ROPE if kind == "gemma3 scaled" else plain
        config = Gemma3TextConfig(
            **SIZES, num_hidden_layers=7, layer_types=layers, rope_parameters=ropes
        )
        made = Gemma3TextModel(config)
    for parameter in made.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return made.eval()


def write_gemma(path: Path, kind: str, formats: tuple[str, ...] = FORMATS) -> PreTrainedModel:
    """A GGUF file of a random model, and the model with the numbers that the file holds."""
    whole, name = model(kind), kind.split()[0]
    writer = gguf.GGUFWriter(path, name)
    config: Any = whole.config
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(2048)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_key_length(32)
    writer.add_value_length(32)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_sliding_window(8)
    if name == "gemma3":
        writer.add_rope_freq_base(20_000.0)
    if kind == "gemma3 scaled":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(4.0)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(TOKENS)
    writer.add_token_scores([-1000.0] * len(TOKENS))
    writer.add_token_types(KINDS)
    for role, number in (("pad", 0), ("eos", 1), ("bos", 2), ("unk", 3)):
        getattr(writer, f"add_{role}_token_id")(number)
    parts = {one: own for own, one in LAYER_TENSORS.items()} | {v: k for k, v in TENSORS.items()}
    with torch.no_grad():
        for index, (own, value) in enumerate(whole.state_dict().items()):
            layer, _, part = own.removesuffix(".weight").removeprefix("layers.").partition(".")
            label = f"blk.{layer}.{parts[part]}" if part else parts[layer]
            form = formats[index % len(formats)] if value.ndim == 2 else "F32"
            kind_of = gguf.GGMLQuantizationType[form]
            stored = (value + 1 if value.ndim == 1 else value).numpy()
            raw = gguf.quantize(stored, kind_of)
            writer.add_tensor(f"{label}.weight", raw, raw_dtype=kind_of)
            held = torch.from_numpy(gguf.dequantize(raw, kind_of).reshape(value.shape).copy())
            value.copy_(held - 1 if value.ndim == 1 else held)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return whole
