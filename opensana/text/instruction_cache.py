"""The KV cache of the instruction, computed once and continued by every prompt."""

# P tokens of the prefix, D hidden size, K key-value heads, E head size

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from opensana.errors import WeightsError
from opensana.text.gemma3 import Past
from opensana.text.gemma3_config import Gemma3Config
from opensana.weights.safetensors import read_safetensors, write_safetensors

FILE = "instruction"
"""The name of the stored prefix in a text encoder's folder, without its suffix."""


@dataclass(frozen=True)
class Prefix:
    """The instruction's tokens without the last, which may merge with the prompt's first."""

    tokens: list[int]
    first_state: Tensor  # [1, 1, D]
    layers: list[Past]  # keys and values, each [1, K, P, E]

    def first(self, length: int) -> list[Past]:
        """Keys and values of the first `length` tokens."""
        return [(keys[:, :, :length], values[:, :, :length]) for keys, values in self.layers]

    def to(self, like: Tensor) -> "Prefix":
        """The prefix on the device and in the dtype of a tensor."""
        layers = [(keys.to(like), values.to(like)) for keys, values in self.layers]
        return Prefix(self.tokens, self.first_state.to(like), layers)

    def write(self, folder: Path) -> None:
        pairs = {
            f"layers.{index}.{name}": part
            for index, pair in enumerate(self.layers)
            for name, part in zip(("keys", "values"), pair, strict=True)
        }
        state = {"tokens": torch.tensor(self.tokens), "first_state": self.first_state, **pairs}
        write_safetensors(state, folder, name=FILE)


def stored_prefix(folder: Path, tokens: list[int], config: Gemma3Config) -> Prefix | None:
    """The prefix stored in a text encoder's folder; None if there is none for these tokens."""
    file = folder / f"{FILE}.safetensors"
    if not file.is_file():
        return None
    state = read_safetensors(file)
    if "tokens" in state and state["tokens"].tolist() != tokens:
        return None
    names = [(f"layers.{i}.keys", f"layers.{i}.values") for i in range(len(config.layer_types))]
    each = (1, config.num_key_value_heads, len(tokens), config.head_dim)
    expected = {name: each for pair in names for name in pair}
    expected |= {"tokens": (len(tokens),), "first_state": (1, 1, config.hidden_size)}
    if {name: tuple(tensor.shape) for name, tensor in state.items()} != expected:
        raise WeightsError(f"{file} does not fit the text encoder beside it: delete it")
    layers = [(state[keys], state[values]) for keys, values in names]
    return Prefix(tokens, state["first_state"], layers)
