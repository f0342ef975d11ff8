"""The decoder of Gemma 3 (arXiv 2503.19786, section 2), without a head.

Same numbers, names and files as transformers' Gemma3TextModel, without the seconds that importing
transformers takes. Other language models are loaded by transformers.
"""

# B batch, L new tokens, P past tokens, D hidden size, H heads, K key-value heads, E head size

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opensana.files.writing import write_json
from opensana.layers.weight_only import PlainState, keep_in_8_bits
from opensana.text.gemma3_config import FULL, SLIDING, Gemma3Config
from opensana.weights.safetensors import load_into, read_safetensors
from opensana.weights.safetensors import write_safetensors as write_weights

Past = tuple[Tensor, Tensor]
"""Keys and values [B, K, P, E] of one layer."""


class Norm(nn.Module):
    """Gemma's RMSNorm, all in float32; the weight is an offset from one."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        normal = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return (normal * (1.0 + self.weight.float())).type_as(x)


class Attention(nn.Module):
    """Causal grouped-query attention, over all tokens or a sliding window."""

    def __init__(self, config: Gemma3Config) -> None:
        super().__init__()
        width, size = config.hidden_size, config.head_dim
        heads, shared = config.num_attention_heads, config.num_key_value_heads
        self.size, self.scale = size, config.query_pre_attn_scalar**-0.5
        self.q_proj = nn.Linear(width, heads * size, bias=False)
        self.k_proj = nn.Linear(width, shared * size, bias=False)
        self.v_proj = nn.Linear(width, shared * size, bias=False)
        self.o_proj = nn.Linear(heads * size, width, bias=False)
        self.q_norm = Norm(size, config.rms_norm_eps)
        self.k_norm = Norm(size, config.rms_norm_eps)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor, past: Past | None
    ) -> tuple[Tensor, Past]:
        """Output [B, L, D], and the keys and values of all tokens so far."""
        query = rotated(self.q_norm(self._heads(self.q_proj(x))), *rope)
        key = rotated(self.k_norm(self._heads(self.k_proj(x))), *rope)
        value = self._heads(self.v_proj(x))
        if past is not None:
            key, value = (
                torch.cat([old.expand(len(x), -1, -1, -1), new], dim=2)
                for old, new in zip(past, (key, value), strict=True)
            )
        groups = query.shape[1] // key.shape[1]
        mixed = F.scaled_dot_product_attention(
            query,
            key.repeat_interleave(groups, dim=1),
            value.repeat_interleave(groups, dim=1),
            attn_mask=mask,
            scale=self.scale,
        )
        return self.o_proj(mixed.transpose(1, 2).flatten(2)), (key, value)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.size)).transpose(1, 2)


class FeedForward(nn.Module):
    """Feed-forward network with a GEGLU (arXiv 2002.05202)."""

    def __init__(self, config: Gemma3Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x))


class Layer(nn.Module):
    """Attention and feed-forward network, each with a norm before and after."""

    def __init__(self, config: Gemma3Config) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.rms_norm_eps
        self.self_attn = Attention(config)
        self.mlp = FeedForward(config)
        self.input_layernorm = Norm(width, eps)
        self.post_attention_layernorm = Norm(width, eps)
        self.pre_feedforward_layernorm = Norm(width, eps)
        self.post_feedforward_layernorm = Norm(width, eps)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor, past: Past | None
    ) -> tuple[Tensor, Past]:
        mixed, read = self.self_attn(self.input_layernorm(x), rope, mask, past)
        x = x + self.post_attention_layernorm(mixed)
        return x + self.post_feedforward_layernorm(
            self.mlp(self.pre_feedforward_layernorm(x))
        ), read


class Gemma3TextModel(nn.Module):
    """Tokens to hidden states after the final norm."""

    can_continue = True

    def __init__(self, config: Gemma3Config) -> None:
        super().__init__()
        self.config, self.hidden_size = config, config.hidden_size
        # nn.Embedding's own initialisation on `meta` would import torch's compiler.
        table = torch.empty(config.vocab_size, config.hidden_size)
        self.embed_tokens = nn.Embedding.from_pretrained(table, freeze=False)
        self.layers = nn.ModuleList(Layer(config) for _ in config.layer_types)
        self.norm = Norm(config.hidden_size, config.rms_norm_eps)

    @classmethod
    def load(
        cls,
        folder: Path,
        config: Gemma3Config,
        *,
        dtype: torch.dtype | None,
        variant: str | None = None,
    ) -> "Gemma3TextModel":
        """Load a folder's weights by memory map; those of a language-model head are skipped."""
        stored = read_safetensors(folder, variant=variant)
        state = {
            name.removeprefix("model."): value
            for name, value in stored.items()
            if name != "lm_head.weight"
        }
        return cls.of(config, state, dtype=dtype, where=folder)

    @classmethod
    def of(
        cls,
        config: Gemma3Config,
        state: Mapping[str, Tensor],
        *,
        dtype: torch.dtype | None,
        where: Path,
    ) -> "Gemma3TextModel":
        """The model with these tensors; matrices in 8 bits stay so."""
        with torch.device("meta"):
            model = cls(config)
        keep_in_8_bits(model, state)
        load_into(model, state, where=where, finite=False)
        return model.to(dtype)

    def forward(
        self, tokens: Tensor, past: Sequence[Past] | None = None
    ) -> tuple[Tensor, list[Past]]:
        """States [B, L, D] of tokens [B, L], and each layer's keys and values [B, K, P + L, E].

        `past` is the KV cache of the P tokens before, of this batch or of one row that all share.
        """
        x = self.embed_tokens(tokens)
        x = x * torch.tensor(self.hidden_size**0.5, dtype=x.dtype)
        seen = torch.arange((past[0][0].shape[2] if past else 0) + tokens.shape[1], device=x.device)
        new = seen[-tokens.shape[1] :]
        ropes = {kind: self._rope(kind, new, x.dtype) for kind in self.config.rope_theta}
        masks = {kind: self._mask(kind, new, seen) for kind in (SLIDING, FULL)}
        read: list[Past] = []
        for index, (kind, layer) in enumerate(
            zip(self.config.layer_types, self.layers, strict=True)
        ):
            x, pair = layer(x, ropes[kind], masks[kind], past[index] if past else None)
            read.append(pair)
        return self.norm(x), read

    def _rope(self, kind: str, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines [L, E] of rotary position embeddings (RoPE, arXiv 2104.09864)."""
        size = self.config.head_dim
        half = torch.arange(0, size, 2, device=positions.device).float() / size
        angles = positions[:, None].float() / self.config.rope_theta[kind] ** half
        both = torch.cat([angles, angles], dim=-1)
        return both.cos().to(dtype), both.sin().to(dtype)

    def _mask(self, kind: str, new: Tensor, seen: Tensor) -> Tensor:
        """Which positions [L, P + L] each new token attends to."""
        away = new[:, None] - seen
        window = self.config.sliding_window if kind == SLIDING else len(seen)
        return (away >= 0) & (away < window)

    def save_pretrained(self, folder: Path) -> None:
        """Write config.json and model.safetensors, as transformers reads them: plain numbers."""
        state = PlainState(self)
        write_weights(state, folder, name="model")
        dtype = str(state["embed_tokens.weight"].dtype).removeprefix("torch.")
        config = {k: v for k, v in self.config.source.items() if k != "quantization_config"}
        write_json(folder / "config.json", {**config, "dtype": dtype})


def rotated(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """RoPE on x [B, heads, L, E]; channel i is paired with channel i + E / 2."""
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat([-second, first], dim=-1) * sine
