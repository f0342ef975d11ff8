"""Load a text encoder and its tokenizer from a folder.

Gemma 3 and plain tokenizers are read here, all others by transformers. Local files and safetensors
only; a model's own code is never run.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from opensana.errors import WeightsError
from opensana.files.writing import read_json
from opensana.layers.weight_only import (
    PlainState,
    WeightOnly,
    WeightOnlyEmbedding,
    keep_in_8_bits,
)
from opensana.text.gemma3 import Gemma3TextModel
from opensana.text.gemma3_config import Gemma3Config
from opensana.text.gguf import gguf_in, read_config, read_state
from opensana.text.gguf_tokenizer import read_tokenizer
from opensana.text.tokenizer import PreTrainedTokenizerFast
from opensana.weights.gguf import GgufFile
from opensana.weights.safetensors import load_into, read_safetensors

PLAIN_CLASSES = ("TokenizersBackend", "PreTrainedTokenizerFast")
SPECIAL_TOKENS = {"bos_token", "eos_token", "pad_token", "unk_token"}
PLAIN_KEYS = SPECIAL_TOKENS | {"backend", "model_max_length", "tokenizer_class"}
# Decoders with plain scaled dot-product attention, under a causal or sliding-window mask.
PLAIN_ATTENTION = ("gemma", "gemma3_text", "llama", "mistral", "phi3", "qwen2", "qwen3")
SOFTCAP = "attn_logit_softcapping"
# Config files are not trusted: sizes are bounded before anything is allocated.
LARGEST = {
    "head_dim": 4096,
    "hidden_size": 65536,
    "intermediate_size": 2**20,
    "max_position_embeddings": 2**24,
    "num_attention_heads": 1024,
    "num_hidden_layers": 256,
    "num_key_value_heads": 1024,
    "vocab_size": 2**22,
}


def part_of(folder: Path | str, name: str) -> Path:
    """The subfolder of a part, or the folder itself if it holds all parts."""
    folder = Path(folder)
    return folder / name if (folder / name).is_dir() else folder


def load_model(folder: Path, dtype: torch.dtype | None) -> Any:
    """The decoder of a causal language model, without its head."""
    if (file := gguf_in(folder)) is not None:
        opened = GgufFile(file)
        values = read_config(opened)
        check_sizes(values, where=file)
        return _in_8_bits(values, read_state(opened), dtype or torch.float32, file)
    values = check_config(folder)
    variant = _variant(folder)
    if values.get("quantization_config", {}).get("quant_method") == "opensana":
        values = {k: v for k, v in values.items() if k != "quantization_config"}
        return _in_8_bits(values, _read_8_bits(folder), dtype or torch.float32, folder)
    if config := Gemma3Config.from_dict(values):
        return Gemma3TextModel.load(folder, config, dtype=dtype, variant=variant)
    return _load_by_library(folder, dtype, variant, attention=attention_kernel(values))


def _read_8_bits(folder: Path) -> dict[str, Tensor]:
    """The state of a decoder in 8 bits, whose matrices may be written flat."""
    state = {k.removeprefix("model."): v for k, v in read_safetensors(folder).items()}
    for name, scale in [(k, state[f"{k}_scale"]) for k in state if f"{k}_scale" in state]:
        if not len(scale) or state[name].numel() % len(scale):
            raise WeightsError(
                f"{folder}: {name} has {state[name].numel()} numbers, {len(scale)} rows"
            )
        state[name] = state[name].view(len(scale), -1)
    return state


def _in_8_bits(
    values: Mapping[str, Any], state: Mapping[str, Tensor], dtype: torch.dtype, where: Path
) -> Any:
    """Gemma whose matrices lie in 8 bits: Gemma 3 as ours, others as transformers'."""
    if config := Gemma3Config.from_dict(values):
        return Gemma3TextModel.of(config, state, dtype=dtype, where=where)
    from transformers import AutoConfig, AutoModel

    library = AutoConfig.for_model(**values)
    with torch.device("meta"):
        model: Any = AutoModel.from_config(library, attn_implementation=attention_kernel(values))
    scaled = hasattr(model.embed_tokens, "embed_scale")
    keep_in_8_bits(model, state)
    load_into(model, state, where=where)
    # What no file holds was made on `meta` too.
    model.rotary_emb = type(model.rotary_emb)(library)
    if scaled:
        factor = torch.tensor(library.hidden_size**0.5, dtype=dtype)

        def times_factor(_module: nn.Module, _tokens: Any, rows: Tensor) -> Tensor:
            return rows * factor

        if isinstance(model.embed_tokens, WeightOnlyEmbedding):
            model.embed_tokens.register_forward_hook(times_factor)
        else:
            model.embed_tokens.embed_scale = factor
    return model.to(dtype)


def save_model(model: Any, folder: Path) -> None:
    """Write a decoder as transformers reads it: what is in 8 bits as plain numbers."""
    if isinstance(model, Gemma3TextModel) or not any(
        isinstance(part, WeightOnly) for part in model.modules()
    ):
        model.save_pretrained(folder)
    else:
        model.save_pretrained(folder, state_dict=dict(PlainState(model)))


def attention_kernel(config: Mapping[str, Any]) -> str:
    """The attention implementation of transformers that honours a decoder's whole config.json.

    torch's fused kernel (sdpa) has no logit softcap, and some versions of transformers silently
    drop it. Models that are not known to be plain get their own formula (eager).
    """
    plain = config.get("model_type") in PLAIN_ATTENTION and config.get(SOFTCAP) is None
    return "sdpa" if plain else "eager"


def _load_by_library(
    folder: Path, dtype: torch.dtype | None, variant: str | None, *, attention: str
) -> Any:
    from transformers import AutoModel

    try:
        with without_progress():
            loaded: Any = AutoModel.from_pretrained(
                folder,
                dtype=dtype or "auto",
                variant=variant,
                attn_implementation=attention,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
    except Exception as error:  # strict configs and the Rust side raise anything
        raise WeightsError(f"cannot read the text encoder in {folder}: {error}") from error
    model, report = loaded
    if report["missing_keys"]:
        raise WeightsError(
            f"the text encoder in {folder} lacks {sorted(report['missing_keys'])[:3]}"
        )
    return model.get_decoder()


def check_config(folder: Path) -> dict[str, Any]:
    """Read config.json; WeightsError if it is missing or its sizes are out of bounds."""
    path = folder / "config.json"
    if not path.is_file():
        raise WeightsError(
            f"no text encoder in {folder}: config.json is missing; copy text_encoder/ and "
            "tokenizer/ of a published model beside the transformer"
        )
    config = read_json(path)
    check_sizes(config, where=path)
    return config


def check_sizes(config: Mapping[str, Any], *, where: Path) -> None:
    """WeightsError for a size out of bounds."""
    for table in (config, *(part for part in config.values() if isinstance(part, dict))):
        for name, most in LARGEST.items():
            value = table.get(name)
            if isinstance(value, int | float) and not 0 <= value <= most:
                raise WeightsError(f"{where}: {name} must be at most {most}, got {value}")


def _variant(folder: Path) -> str | None:
    """The variant in the weight files' names ("fp16"), or None if there are files without one."""
    if not any(folder.glob("*.safetensors")):
        raise WeightsError(f"no text encoder weights in {folder}: expected *.safetensors")
    plain = ("model.safetensors", "model.safetensors.index.json")
    if any((folder / name).is_file() for name in plain):
        return None
    names = [path.name for path in sorted(folder.glob("model.*"))]
    found = (
        re.fullmatch(r"model(?:\.safetensors\.index)?\.(\w+)\.(?:json|safetensors)", n)
        for n in names
    )
    return next((match[1] for match in found if match), None)


@contextmanager
def without_progress() -> Iterator[None]:
    """Without transformers' progress bars."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    if shown:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def load_tokenizer(folder: Path, encoder: Path | None = None) -> Any:
    """The fast tokenizer of a folder with tokenizer.json, or of the encoder's GGUF file."""
    file = folder / "tokenizer.json"
    gguf = None if file.is_file() or encoder is None else gguf_in(encoder)
    if gguf is None and not file.is_file():
        raise WeightsError(f"no tokenizer in {folder}: tokenizer.json is missing")
    try:
        if gguf is not None:
            return PreTrainedTokenizerFast.of(*read_tokenizer(GgufFile(gguf)))
        if (tokens := _plain_tokens(folder)) is not None:
            return PreTrainedTokenizerFast(file, tokens)
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the Rust side raises bare exceptions
        raise WeightsError(f"cannot read the tokenizer in {folder}: {error}") from error


def _plain_tokens(folder: Path) -> dict[str, str] | None:
    """The special tokens if tokenizer_config.json says nothing else that matters, else None.

    tokenizer.json is then all there is; AutoTokenizer would parse it twice.
    """
    path = folder / "tokenizer_config.json"
    config = read_json(path) if path.is_file() else {}
    if config.get("tokenizer_class") not in PLAIN_CLASSES or not set(config) <= PLAIN_KEYS:
        return None
    return {key: value for key, value in config.items() if key.endswith("_token")}
