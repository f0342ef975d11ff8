"""A text encoder's attention is all that its configuration asks for, whatever the library picks.

Also tests `text/loading.py`.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers.models.gemma2 import modeling_gemma2

from opensana.text.encoder import TextEncoder
from opensana.text.loading import attention_kernel, load_model
from tests.text.test_encoder import ALTERNATING, LONG, PROMPTS, SIZES, assert_same, tokenizer

LARGE = 200.0
"""Weights of queries and keys times this make logits far above a cap of 50."""
TOKENS = torch.tensor([[2, *range(10, 49)]])
SOFTCAP_KEY = "attn_logit_softcapping"


def save(folder: Path, family: str, *, large: float = LARGE, **options: Any) -> Any:
    """A tiny decoder with large logits, written as transformers writes it."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SIZES | options)
    model = getattr(transformers, f"{family}Model")(config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "q_proj" in name or "k_proj" in name or "qkv_proj" in name:
                value.mul_(large)
    model.save_pretrained(folder)
    return model


def softcapped(model: Any, tokens: Tensor) -> Tensor:
    """Gemma 2 (arXiv 2408.00118, section 2) written out, causal, of 2 heads that share keys."""
    cap, scale = model.config.attn_logit_softcapping, model.config.query_pre_attn_scalar**-0.5
    count = tokens.shape[1]
    ahead = torch.ones(count, count, dtype=torch.bool).triu(1)
    x = model.embed_tokens(tokens)
    rope = model.rotary_emb(x, torch.arange(count)[None])
    for layer in model.layers:
        inner, part = layer.input_layernorm(x), layer.self_attn
        query, key, value = (
            one(inner).unflatten(-1, (-1, 8)).transpose(1, 2)
            for one in (part.q_proj, part.k_proj, part.v_proj)
        )
        query, key = modeling_gemma2.apply_rotary_pos_emb(query, key, *rope)
        logits = cap * torch.tanh(scale * query @ key.transpose(-1, -2) / cap)
        mixed = logits.masked_fill(ahead, -torch.inf).softmax(-1) @ value
        x = x + layer.post_attention_layernorm(part.o_proj(mixed.transpose(1, 2).flatten(2)))
        x = x + layer.post_feedforward_layernorm(layer.mlp(layer.pre_feedforward_layernorm(x)))
    return model.norm(x)


@pytest.mark.parametrize("prefers_sdpa", [False, True])
@pytest.mark.parametrize("options", [{}, {"query_pre_attn_scalar": 3, SOFTCAP_KEY: 5.0}])
def test_gemma_2_keeps_its_softcap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], prefers_sdpa: bool
) -> None:
    model = save(tmp_path, "Gemma2", **options)
    with torch.no_grad():
        expected = softcapped(model, TOKENS)
        model.config.attn_logit_softcapping = 1e9
        uncapped = softcapped(model, TOKENS)
    assert (uncapped - expected).norm() > 0.2 * expected.norm(), "the cap must matter here"
    # What the library takes by itself differs between its versions.
    monkeypatch.setattr(modeling_gemma2.Gemma2PreTrainedModel, "_supports_sdpa", prefers_sdpa)
    with torch.no_grad():
        states = load_model(tmp_path, torch.float32)(input_ids=TOKENS)[0]
    assert (states - expected).norm() < 1e-5 * expected.norm()


def test_the_softcap_holds_behind_the_instruction(tmp_path: Path) -> None:
    model = save(tmp_path, "Gemma2", sliding_window=16, layer_types=ALTERNATING)
    tokenizer().save_pretrained(tmp_path)
    model.set_attn_implementation("eager")
    reference = TextEncoder(model, tokenizer())
    loaded = TextEncoder.load(tmp_path, dtype=torch.float32)
    assert_same(loaded.encode(PROMPTS), reference.encode(PROMPTS), atol=1e-5)
    assert_same(loaded.encode_plain(PROMPTS), reference.encode_plain(PROMPTS), atol=1e-5)


WINDOW = {"sliding_window": 16}


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("Gemma", {}),
        ("Llama", {}),
        ("Mistral", WINDOW),
        ("Phi3", WINDOW),
        ("Qwen2", {**WINDOW, "use_sliding_window": True, "max_window_layers": 1}),
        ("Qwen3", {**WINDOW, "use_sliding_window": True, "max_window_layers": 1}),
    ],
)
def test_the_fused_kernel_equals_each_models_own_formula(
    tmp_path: Path, family: str, options: dict[str, Any]
) -> None:
    model = save(tmp_path, family, large=4, **options)
    tokenizer().save_pretrained(tmp_path)
    loaded = TextEncoder.load(tmp_path, dtype=torch.float32)
    assert loaded.model.config._attn_implementation == "sdpa"
    model.set_attn_implementation("eager")
    reference = TextEncoder(model, tokenizer())
    prompts = ["a cat", LONG]
    assert_same(loaded.encode(prompts), reference.encode(prompts), atol=1e-4)
    assert_same(loaded.encode_plain(prompts), reference.encode_plain(prompts), atol=1e-4)


@pytest.mark.parametrize(
    ("config", "kernel"),
    [
        ({"model_type": "gemma2", "attn_logit_softcapping": 50.0}, "eager"),
        ({"model_type": "gemma2"}, "eager"),  # where the key is missing, the cap is 50
        ({"model_type": "gemma2", "attn_logit_softcapping": None}, "eager"),
        ({"model_type": "gemma3_text", "attn_logit_softcapping": 30.0}, "eager"),
        ({"model_type": "gemma3_text", "attn_logit_softcapping": None}, "sdpa"),
        ({"model_type": "qwen2", "final_logit_softcapping": 30.0}, "sdpa"),
        ({"model_type": "gpt_oss"}, "eager"),  # attention sinks
        ({"model_type": "gemma3", "text_config": {"attn_logit_softcapping": 30.0}}, "eager"),
        ({}, "eager"),
    ],
)
def test_the_kernel_is_chosen_by_the_configuration(config: dict[str, Any], kernel: str) -> None:
    assert attention_kernel(config) == kernel


def test_gemma_3_with_a_softcap_keeps_it(tmp_path: Path) -> None:
    """Its own implementation here has none, so that the library reads such a model."""
    model = save(tmp_path, "Gemma3Text", large=4, **{SOFTCAP_KEY: 0.5})
    assert json.loads((tmp_path / "config.json").read_text())[SOFTCAP_KEY] == 0.5
    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = model(input_ids=TOKENS)[0]
        states = load_model(tmp_path, torch.float32)(input_ids=TOKENS)[0]
    assert (states - expected).norm() < 1e-5 * expected.norm()
