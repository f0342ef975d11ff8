"""Prompt embeddings from a decoder-only language model (paper 2.3).

The published code pads instruction and prompt to a fixed length and keeps position 0 and the last
299. Here padding is not computed, and the instruction's keys and values are computed once (a prefix
KV cache): the kept states are the same numbers.
"""

# B batch, N kept tokens, D hidden size, L tokens of the longest row

import ctypes
import gc
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from opensana.errors import RequestError
from opensana.text.gemma3 import Gemma3TextModel
from opensana.text.instruction import KEPT_TOKENS
from opensana.text.instruction import instruction as instruction_text
from opensana.text.instruction_cache import Prefix, stored_prefix
from opensana.text.loading import load_model, load_tokenizer, part_of
from opensana.text.transformers_decoder import LibraryDecoder


@dataclass(frozen=True)
class TextStates:
    """Hidden states (prompt embeddings) [B, N, D], and mask [B, N], true at real tokens.

    N is the longest of the batch; states at padding are zero. The mask is on the CPU, where it can
    be read without waiting for the device.
    """

    states: Tensor
    mask: Tensor


@dataclass(frozen=True)
class _Window:
    """At most `limit` tokens are read; position 0 and those from `tail` on are kept."""

    limit: int
    tail: int


class TextEncoder:
    """A decoder-only language model without its head, as text encoder."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        instruction: str = "diffusers",
        max_tokens: int = KEPT_TOKENS,
    ) -> None:
        """`model` is Gemma3TextModel or one of transformers; `instruction` is a name."""
        self.model: Any = model.eval().requires_grad_(False)
        self._decoder: Any = model if isinstance(model, Gemma3TextModel) else LibraryDecoder(model)
        self.hidden_size: int = self._decoder.hidden_size
        self.tokenizer = tokenizer
        self.instruction = instruction_text(instruction)
        self._plain = _Window(limit=max_tokens, tail=1)
        self._window = self._plain
        if self.instruction:  # padded to `limit`, then position 0 and the last max_tokens - 1
            length = len(tokenizer(self.instruction)["input_ids"])
            self._window = _Window(limit=length + max_tokens - 2, tail=length - 1)
        self._prefix: Prefix | None = None
        self._prefix_folder: Path | None = None
        self._empty: TextStates | None = None
        self._kept: dict[tuple[str, _Window], TextStates] = {}

    @classmethod
    def load(
        cls,
        folder: Path | str,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        instruction: str = "diffusers",
        max_tokens: int = KEPT_TOKENS,
    ) -> Self:
        """Load `text_encoder/` and `tokenizer/` of a model folder, or one folder with both.

        The text encoder may be a GGUF file, or `folder` be one: its matrices stay in 8 bits.
        """
        part = part_of(folder, "text_encoder")
        model = load_model(part, dtype).to(device)
        tokenizer = load_tokenizer(part_of(folder, "tokenizer"), part)
        encoder = cls(model, tokenizer, instruction=instruction, max_tokens=max_tokens)
        encoder._prefix_folder = part
        return encoder

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def encode(self, prompts: Sequence[str]) -> TextStates:
        """States of the prompts, each read after the instruction."""
        return self._encode([self.instruction + _normalise(p) for p in prompts], self._window)

    def encode_plain(self, prompts: Sequence[str]) -> TextStates:
        """States of negative and null prompts, read without the instruction.

        Those of the empty prompt are computed once and kept.
        """
        if not prompts or any(prompts):
            return self._encode([_normalise(p) for p in prompts], self._plain)
        if self._empty is None:
            self._empty = self._encode([""], self._plain)
        states, mask = self._empty.states, self._empty.mask
        return TextStates(states.expand(len(prompts), -1, -1), mask.expand(len(prompts), -1))

    def drop_weights(self, prompts: Iterable[str], plain: Iterable[str] = ()) -> None:
        """Encode prompts, and those read without the instruction, and free the language model.

        The encoder gives their states from then on; RequestError for any other text.
        """
        wanted = [(self.instruction + _normalise(text), self._window) for text in prompts]
        wanted += [(_normalise(text), self._plain) for text in plain]
        self._kept = {key: self._encode([key[0]], key[1]) for key in dict.fromkeys(wanted)}
        self.model = self._decoder = self._prefix = self._empty = None
        gc.collect()
        if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
            libc.malloc_trim(0)  # glibc keeps freed blocks below 32 MiB, of which a model is made

    def truncated(self, prompt: str, *, plain: bool = False) -> str | None:
        """The end of the (lower-cased) prompt that is cut off because it is too long, or None."""
        text = _normalise(prompt) if plain else self.instruction + _normalise(prompt)
        window = self._plain if plain else self._window
        (offsets,) = self._tokenise([text], window.limit, offsets=True)["offset_mapping"]
        end = max((end for _, end in offsets), default=0)
        return text[end:].strip() or None

    def _tokenise(self, texts: Sequence[str], limit: int, *, offsets: bool = False) -> Any:
        return self.tokenizer(
            list(texts), truncation=True, max_length=limit, return_offsets_mapping=offsets
        )

    @property
    def _padding(self) -> int:
        options = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id)
        return next((token for token in options if token is not None), 0)

    @torch.no_grad()
    def _encode(self, texts: Sequence[str], window: _Window) -> TextStates:
        if not texts:
            raise RequestError(
                "no prompt to encode: pass at least one, the empty prompt is one too"
            )
        if self.model is None:
            return self._kept_states(texts, window)
        tokens = self._tokenise(texts, window.limit)["input_ids"]
        rows = [row or [self._padding] for row in tokens]  # the model needs at least one token
        prefix = self._shared_prefix() if window is not self._plain else None
        shared = _shared_length(prefix, rows)
        # Padded on the right, where causal attention never looks: no mask is needed.
        longest = max(len(row) for row in rows)
        padded = [row[shared:] + [self._padding] * (longest - len(row)) for row in rows]
        past = prefix.first(shared) if prefix is not None and shared else None
        states = self._decoder(torch.tensor(padded, device=self.device), past)[0]
        first = prefix.first_state.expand(len(rows), -1, -1) if prefix and shared else states[:, :1]
        kept = torch.cat([first, states[:, window.tail - shared :]], dim=1)
        counts = torch.tensor([1 + max(0, len(row) - window.tail) for row in rows])
        mask = torch.arange(kept.shape[1]) < counts[:, None]
        padding = ~mask[..., None].to(kept.device)
        return TextStates(states=kept.masked_fill(padding, 0), mask=mask)

    def _kept_states(self, texts: Sequence[str], window: _Window) -> TextStates:
        if unknown := [text for text in texts if (text, window) not in self._kept]:
            raise RequestError(f"the text encoder was dropped before it read {unknown[0][-40:]!r}")
        kept = [self._kept[text, window] for text in texts]
        states = pad_sequence([one.states[0] for one in kept], batch_first=True)
        return TextStates(states, pad_sequence([one.mask[0] for one in kept], batch_first=True))

    def _shared_prefix(self) -> Prefix | None:
        """The instruction's KV cache, computed on first use.

        None for models with recurrent layers, which have other state than keys and values: they
        read the instruction again for each prompt.
        """
        if self._prefix is None and self._decoder.can_continue:
            self._prefix = self._read_instruction()
        return self._prefix

    def write_prefix(self, folder: Path) -> None:
        """Store the instruction's KV cache beside the weights, for later loads."""
        prefix = self._shared_prefix()
        assert prefix is not None, "no instruction, or a model that cannot go on from one"
        prefix.write(folder)

    @torch.no_grad()
    def _read_instruction(self) -> Prefix | None:
        tokens = self.tokenizer(self.instruction)["input_ids"][:-1]
        if not tokens:
            return None
        if isinstance(self._decoder, Gemma3TextModel) and self._prefix_folder is not None:
            config = self._decoder.config
            stored = stored_prefix(self._prefix_folder, tokens, config)
            if stored is not None:
                return stored.to(self._decoder.norm.weight)
        states, layers = self._decoder(torch.tensor([tokens], device=self.device))
        return Prefix(tokens=tokens, first_state=states[:, :1].clone(), layers=layers)


def _normalise(prompt: str) -> str:
    """Lower-cased and stripped, as in diffusers."""
    return prompt.lower().strip()


def _shared_length(prefix: Prefix | None, rows: list[list[int]]) -> int:
    """Prefix tokens that all rows share; each row keeps at least one token to compute."""
    if prefix is None:
        return 0
    return min(min(_common(prefix.tokens, row), len(row) - 1) for row in rows)


def _common(one: list[int], other: list[int]) -> int:
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
