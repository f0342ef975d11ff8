"""Language models of transformers, called like Gemma3TextModel."""

# B batch, L new tokens, P past tokens, D hidden size, K key-value heads, E head size

import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from opensana.errors import ConfigError
from opensana.text.gemma3 import Past

CACHEABLE = {"full_attention", "sliding_attention"}


class LibraryDecoder:
    """A decoder of transformers, called as Gemma3TextModel is."""

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model
        self.config: Any = self.model.config.get_text_config(decoder=True)
        self.hidden_size: int = self.config.hidden_size
        self._cache_name = _cache_name(self.model)
        if getattr(self.config, "use_bidirectional_attention", False):
            raise ConfigError(
                "the text encoder must be a decoder: this one attends in both directions"
            )

    @property
    def can_continue(self) -> bool:
        """Whether a KV cache is all of the model's state; recurrent layers have more."""
        layers = set(getattr(self.config, "layer_types", None) or ())
        return self._cache_name is not None and layers <= CACHEABLE

    def __call__(
        self, tokens: Tensor, past: Sequence[Past] | None = None
    ) -> tuple[Tensor, list[Past]]:
        """States [B, L, D] of tokens [B, L], and each layer's keys and values [B, K, P + L, E]."""
        if self._cache_name is None or not self.can_continue:
            return self.model(input_ids=tokens, use_cache=False)[0], []
        from transformers import DynamicCache

        # Not a cache that knows of sliding windows: it would drop keys that a shorter prefix still
        # needs. The attention mask applies the window anyway. Appending copies, so `past` is kept.
        batch = len(tokens)
        layers: Any = [
            tuple(part.expand(batch, -1, -1, -1) for part in layer) for layer in past or ()
        ]
        cache: Any = DynamicCache(layers) if past is not None else DynamicCache()
        states = self.model(input_ids=tokens, use_cache=True, **{self._cache_name: cache})[0]
        return states, [(layer.keys, layer.values) for layer in cache.layers]


def _cache_name(model: Any) -> str | None:
    """The model's argument for its KV cache (`cache` from transformers 5.24 on), or None."""
    known = inspect.signature(model.forward).parameters
    return next((name for name in ("cache", "past_key_values") if name in known), None)
