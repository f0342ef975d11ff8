"""The unpadded, prefix-cached states equal the padded run of diffusers' SanaPipeline.

Also tests `text/gemma3.py`, `text/gemma3_config.py` and `text/instruction_cache.py`.
"""

import contextlib
import functools
import gc
import json
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.sana.pipeline_sana import SanaPipeline
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import (
    AutoModel,
    AutoTokenizer,
    Gemma2Config,
    Gemma2Model,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Gemma3TextModel,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2Model,
    Qwen3Config,
    Qwen3Model,
)

from opensana.errors import ConfigError, OpensanaError, RequestError, WeightsError
from opensana.files.writing import read_json
from opensana.text import encoder as encoder_module
from opensana.text import gemma3, gemma3_config
from opensana.text import transformers_decoder as library
from opensana.text.encoder import TextEncoder, TextStates
from opensana.text.instruction import COMPLEX_HUMAN_INSTRUCTION, instruction
from opensana.text.loading import load_model
from tests.configs import HOSTILE

LONG = "a red apple, a green pear and one more cat, " * 60
PROMPTS = ["A cat", "", "  Three RED apples on a blue Background  ", "été 猫 \N{CAT FACE}", LONG]
SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 1,
}
ALTERNATING = ["sliding_attention", "full_attention"]


def window(size: int) -> dict[str, Any]:
    return {"sliding_window": size, "layer_types": ALTERNATING}


def build(family: str) -> Any:
    torch.manual_seed(0)
    match family:
        case "gemma2":
            plain: dict[str, Any] = {"attn_implementation": "eager"}
            return Gemma2Model(Gemma2Config(**SIZES, **window(4096), **plain))
        case "gemma2-short-window":
            return Gemma2Model(Gemma2Config(**SIZES, **window(16)))
        case "gemma3-short-window":
            return Gemma3TextModel(Gemma3TextConfig(**SIZES, **window(16)))
        case "gemma3-window-behind-instruction":
            return Gemma3TextModel(Gemma3TextConfig(**SIZES, **window(300)))
        case "qwen2":
            sizes = {name: value for name, value in SIZES.items() if name != "head_dim"}
            return Qwen2Model(Qwen2Config(**sizes))
        case "qwen3":
            return Qwen3Model(Qwen3Config(**SIZES))
        case _:
            return LlamaModel(LlamaConfig(**SIZES))


@functools.cache
def tokenizer(*, bos: bool = True) -> PreTrainedTokenizerFast:
    """Byte-level pairs in which the instruction's last token merges with the prompt's first."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZES["vocab_size"],
        special_tokens=["<pad>", "<eos>", "<bos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([COMPLEX_HUMAN_INSTRUCTION, " a cat on a red apple"] * 9, trainer)
    if bos:
        core.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", 2)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>"
    )


def published(
    encoder: TextEncoder, prompts: Sequence[str], *, kept: int = 300
) -> tuple[TextStates, TextStates]:
    """Prompt states and, for the same texts as negative prompts, states from diffusers, padded."""
    parts: Any = {"vae": None, "transformer": None, "scheduler": None}
    pipeline: Any = SanaPipeline(encoder.tokenizer, encoder.model, **parts)
    lines: Any = encoder.instruction.split("\n") if encoder.instruction else None
    with torch.no_grad():
        states, mask, negative, negative_mask = pipeline.encode_prompt(
            list(prompts),
            negative_prompt=list(prompts),  # pyright: ignore[reportArgumentType]
            device=torch.device("cpu"),
            max_sequence_length=kept,
            complex_human_instruction=lines,
        )
    assert negative is not None
    assert negative_mask is not None
    return TextStates(states, mask.bool()), TextStates(negative, negative_mask.bool())


def assert_same(ours: TextStates, reference: TextStates, atol: float = 1e-4) -> None:
    assert ours.mask.dtype == torch.bool
    assert ours.mask.sum(1).tolist() == reference.mask.sum(1).tolist()
    assert ours.states.shape[1] == int(reference.mask.sum(1).max())
    assert torch.equal(ours.mask, reference.mask[:, : ours.mask.shape[1]])
    torch.testing.assert_close(
        ours.states[ours.mask], reference.states[reference.mask], atol=atol, rtol=0
    )
    assert not ours.states[~ours.mask].any()


def count_tokens(encoder: TextEncoder) -> list[int]:
    """Grows by the number of tokens of every forward pass."""
    counts: list[int] = []

    def record(module: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        counts.append(inputs[0].numel())

    encoder.model.embed_tokens.register_forward_hook(record)
    return counts


FAMILIES = (
    "gemma2",
    "gemma2-short-window",
    "gemma3-short-window",
    "gemma3-window-behind-instruction",
    "qwen2",
    "qwen3",
    "llama",
)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_equals_the_padded_run_of_diffusers(family: str) -> None:
    encoder = TextEncoder(build(family), tokenizer())
    prompt, negative = published(encoder, PROMPTS)
    assert_same(encoder.encode(PROMPTS), prompt)
    assert_same(encoder.encode_plain(PROMPTS), negative)
    for number, text in enumerate(PROMPTS):
        one = TextStates(prompt.states[number, None], prompt.mask[number, None])
        assert_same(encoder.encode([text]), one)


@pytest.mark.parametrize("name", ["official", "none"])
@pytest.mark.parametrize("kept", [12, 300])
def test_other_instructions_and_lengths(name: str, kept: int) -> None:
    encoder = TextEncoder(
        build("gemma3-short-window"), tokenizer(), instruction=name, max_tokens=kept
    )
    prompt, negative = published(encoder, PROMPTS, kept=kept)
    assert_same(encoder.encode(PROMPTS), prompt)
    assert_same(encoder.encode_plain(PROMPTS), negative)


def test_without_bos() -> None:
    encoder = TextEncoder(build("qwen2"), tokenizer(bos=False))
    prompt, negative = published(encoder, ["a cat", LONG])
    assert_same(encoder.encode(["a cat", LONG]), prompt)
    assert_same(encoder.encode_plain(["a cat", LONG]), negative)
    assert encoder.encode_plain([""]).mask.tolist() == [[True]]


def test_the_empty_negative_prompt_is_bos_alone() -> None:
    encoder = TextEncoder(build("gemma2"), tokenizer())
    _, negative = published(encoder, [""])
    assert negative.mask.sum() == 1
    assert encoder.encode_plain([""]).states.shape == (1, 1, 16)


def test_the_empty_prompt_is_read_once() -> None:
    encoder = TextEncoder(build("gemma2"), tokenizer())
    _, negative = published(encoder, ["", ""])
    assert_same(encoder.encode_plain(["", ""]), negative)
    encoder.model.forward = None
    assert_same(encoder.encode_plain(["", ""]), negative)
    with pytest.raises(TypeError):
        encoder.encode_plain(["a cat"])


def test_an_encoder_whose_weights_are_dropped_gives_what_it_has_read() -> None:
    encoder = TextEncoder(build("gemma2"), tokenizer())
    expected = [encoder.encode([prompt]) for prompt in PROMPTS]
    negative, cut = encoder.encode_plain([""]), encoder.truncated(LONG)
    model = weakref.ref(encoder.model)
    encoder.drop_weights(["  A CAT", *PROMPTS], [""])
    gc.collect()
    assert model() is None
    for prompt, states in zip(PROMPTS, expected, strict=True):
        assert_same(encoder.encode([prompt]), states)
    both = encoder.encode(PROMPTS)
    for row, states in enumerate(expected):
        assert torch.equal(both.states[row][both.mask[row]], states.states[0])
    assert_same(encoder.encode_plain(["", ""][:1]), negative)
    assert (encoder.truncated(LONG), encoder.hidden_size) == (cut, 16)
    with pytest.raises(RequestError, match="was dropped before it read 'a dog'"):
        encoder.encode_plain(["a dog"])


def test_the_instruction_is_read_once_and_merges_are_respected() -> None:
    encoder = TextEncoder(build("gemma2"), tokenizer())
    instructed = len(encoder.tokenizer(encoder.instruction)["input_ids"])
    whole = encoder.tokenizer(encoder.instruction + "a cat")["input_ids"]
    assert whole[: instructed - 1] == encoder.tokenizer(encoder.instruction)["input_ids"][:-1]
    assert whole[:instructed] != encoder.tokenizer(encoder.instruction)["input_ids"]
    counts = count_tokens(encoder)
    encoder.encode(["a cat"])
    encoder.encode(["a cat", "a cat"])
    fresh = len(whole) - (instructed - 1)
    assert counts == [instructed - 1, fresh, 2 * fresh]


def test_the_stored_prefix_does_not_change() -> None:
    encoder = TextEncoder(build("gemma3-short-window"), tokenizer())
    first = encoder.encode(["a cat"]).states
    prefix = encoder._prefix
    assert prefix is not None
    before = [(keys.clone(), values.clone()) for keys, values in prefix.layers]
    encoder.encode(PROMPTS)
    for stored, copy in zip(prefix.layers, before, strict=True):
        assert torch.equal(stored[0], copy[0])
        assert torch.equal(stored[1], copy[1])
    assert torch.equal(encoder.encode(["a cat"]).states, first)


def test_models_with_other_layers_read_the_instruction_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoder = TextEncoder(build("gemma2"), tokenizer())
    expected = encoder.encode(PROMPTS)
    monkeypatch.setattr(library, "CACHEABLE", set())
    assert_same(TextEncoder(build("gemma2"), tokenizer()).encode(PROMPTS), expected)


def test_only_part_of_the_prefix_in_common(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = TextEncoder(build("gemma3-short-window"), tokenizer())
    expected = encoder.encode(PROMPTS)
    monkeypatch.setattr(encoder_module, "_common", lambda one, other: 40)
    assert_same(encoder.encode(PROMPTS), expected)


def test_states_can_be_trained_on() -> None:
    states = TextEncoder(build("gemma2"), tokenizer()).encode(["a cat"]).states
    weight = torch.ones(16, requires_grad=True)
    (states * weight).sum().backward()
    assert weight.grad is not None
    assert not states.requires_grad


@pytest.mark.parametrize("name", ["diffusers", "none"])
def test_the_part_that_is_cut_off_is_told(name: str) -> None:
    encoder = TextEncoder(build("gemma2"), tokenizer(), instruction=name)
    assert encoder.truncated("A cat ") is None
    assert encoder.truncated("") is None
    cut = encoder.truncated(LONG)
    assert cut is not None
    assert LONG.strip().endswith(cut)
    kept = LONG.strip().removesuffix(cut)
    assert encoder.truncated(kept) is None
    read = encoder.encode([kept]).states
    whole = encoder.encode([LONG]).states
    assert whole.shape[1] == 300
    assert read.shape[1] >= 299, "a space at the end of what is kept may be a token"
    torch.testing.assert_close(read, whole[:, : read.shape[1]], atol=1e-5, rtol=0)
    assert encoder.truncated(LONG, plain=True) is not None
    assert encoder.truncated("", plain=True) is None


def test_no_prompt_is_an_error() -> None:
    with pytest.raises(RequestError, match="at least one"):
        TextEncoder(build("gemma2"), tokenizer()).encode([])


def test_a_model_that_looks_ahead_is_refused() -> None:
    model = build("gemma3-short-window")
    model.config.use_bidirectional_attention = True
    with pytest.raises(ConfigError, match="both directions"):
        TextEncoder(model, tokenizer())


def save(folder: Path, model: Any, *, variant: str | None = None) -> None:
    model.save_pretrained(folder / "text_encoder", variant=variant)
    tokenizer().save_pretrained(folder / "tokenizer")


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_load_a_model_folder(tmp_path: Path, variant: str | None) -> None:
    model = build("gemma2")
    save(tmp_path, model, variant=variant)
    loaded = TextEncoder.load(tmp_path, dtype=torch.float32, instruction="official")
    assert loaded.instruction == instruction("official")
    assert loaded.hidden_size == 16
    expected = TextEncoder(model, tokenizer(), instruction="official").encode(PROMPTS)
    assert_same(loaded.encode(PROMPTS), expected, atol=0)


def test_load_one_folder_with_a_language_model_head(tmp_path: Path) -> None:
    model = Gemma3ForCausalLM(build("gemma3-short-window").config)
    model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    loaded = TextEncoder.load(tmp_path, dtype=torch.bfloat16)
    assert type(loaded.model) is gemma3.Gemma3TextModel
    assert loaded.encode(["a cat"]).states.dtype == torch.bfloat16
    exact = TextEncoder.load(tmp_path, dtype=torch.float32).encode(PROMPTS)
    assert_same(exact, TextEncoder(model.get_decoder(), tokenizer()).encode(PROMPTS), atol=1e-5)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("text_encoder/config.json", "config.json is missing"),
        ("text_encoder/model.safetensors", "expected .*safetensors"),
        ("tokenizer/tokenizer.json", "tokenizer.json is missing"),
    ],
)
def test_a_missing_file_is_named(tmp_path: Path, missing: str, message: str) -> None:
    save(tmp_path, build("gemma2"))
    (tmp_path / missing).unlink()
    with pytest.raises(WeightsError, match=message):
        TextEncoder.load(tmp_path)


@pytest.mark.parametrize("plain", [True, False])
def test_a_broken_tokenizer_is_named(tmp_path: Path, plain: bool) -> None:
    save(tmp_path, build("gemma2"))
    folder = tmp_path / "tokenizer"
    (folder / "tokenizer.json").write_text('{"version": "1.0", "model"')
    if not plain:
        config = json.loads((folder / "tokenizer_config.json").read_text())
        more = {**config, "clean_up_tokenization_spaces": False}
        (folder / "tokenizer_config.json").write_text(json.dumps(more))
    with pytest.raises(WeightsError, match=r"cannot read the tokenizer in .*tokenizer"):
        TextEncoder.load(tmp_path)


def test_missing_and_broken_weights_are_errors(tmp_path: Path) -> None:
    model = build("gemma2")
    state = {name: value for name, value in model.state_dict().items() if "layers.1." not in name}
    model.save_pretrained(tmp_path / "text_encoder", state_dict=state)
    tokenizer().save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(WeightsError, match=r"lacks .*layers\.1\."):
        TextEncoder.load(tmp_path)
    (tmp_path / "text_encoder" / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(WeightsError, match="cannot read the text encoder"):
        TextEncoder.load(tmp_path)


@pytest.fixture
def small_gemma(tmp_path: Path) -> Path:
    """A folder with a Gemma 3 and its tokenizer, as transformers writes them."""
    build("gemma3-short-window").save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("prompts", [["A cat"], PROMPTS])
def test_gemma_3_is_read_here_as_by_transformers(small_gemma: Path, prompts: list[str]) -> None:
    loaded = TextEncoder.load(small_gemma)
    assert type(loaded.model) is gemma3.Gemma3TextModel
    reference = TextEncoder(build("gemma3-short-window"), tokenizer())
    assert_same(loaded.encode(prompts), reference.encode(prompts), atol=1e-5)
    assert_same(loaded.encode_plain(prompts), reference.encode_plain(prompts), atol=1e-5)
    assert loaded.truncated(LONG) == reference.truncated(LONG)


def test_what_is_written_here_transformers_reads(small_gemma: Path, tmp_path: Path) -> None:
    loaded = TextEncoder.load(small_gemma, dtype=torch.bfloat16)
    again = tmp_path / "again"
    loaded.model.save_pretrained(again)
    loaded.tokenizer.save_pretrained(again)
    model, report = AutoModel.from_pretrained(again, output_loading_info=True)
    assert not any(report.values())
    assert (type(model), model.dtype) == (Gemma3TextModel, torch.bfloat16)
    reader = AutoTokenizer.from_pretrained(again)
    assert reader(PROMPTS)["input_ids"] == loaded.tokenizer(PROMPTS)["input_ids"]


@pytest.mark.parametrize(
    "change",
    [
        {"use_bidirectional_attention": True},
        {"hidden_activation": "gelu"},
        {"attention_bias": True},
        {"rope_parameters": {kind: {"rope_type": "linear", "factor": 8.0} for kind in ALTERNATING}},
        {"layer_types": ["chunked_attention", "full_attention"]},
        {"model_type": "gemma2"},
    ],
)
def test_another_configuration_is_left_to_transformers(
    small_gemma: Path, change: dict[str, Any]
) -> None:
    values = json.loads((small_gemma / "config.json").read_text())
    assert gemma3_config.Gemma3Config.from_dict(values) is not None
    assert gemma3_config.Gemma3Config.from_dict({**values, **change}) is None


def test_a_damaged_gemma_config_is_named(small_gemma: Path) -> None:
    values = json.loads((small_gemma / "config.json").read_text())
    del values["head_dim"]
    (small_gemma / "config.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=r"config\.json: 'head_dim' is missing"):
        TextEncoder.load(small_gemma)


def test_no_value_of_a_gemma_config_is_a_surprise(small_gemma: Path) -> None:
    """Each is refused in words, left to transformers, or gives a network that runs."""
    path = small_gemma / "config.json"
    values = json.loads(path.read_text())
    for key in gemma3_config.BOUNDS.keys() | {"layer_types", "rope_parameters", "pad_token_id"}:
        for value in (*HOSTILE, dict.fromkeys(ALTERNATING, 3), [[]], [{}]):
            (small_gemma / "config.json").write_text(json.dumps(values | {key: value}))
            with contextlib.suppress(OpensanaError):
                config = gemma3_config.Gemma3Config.from_dict(
                    read_json(small_gemma / "config.json")
                )
                if config is not None:
                    model = load_model(small_gemma, torch.float32)
                    model(torch.tensor([[1, 2, 3]]))


def test_a_stored_instruction_is_gone_on_from(small_gemma: Path) -> None:
    first = TextEncoder.load(small_gemma)
    expected = first.encode(PROMPTS)
    first.write_prefix(small_gemma)
    second = TextEncoder.load(small_gemma)
    counts = count_tokens(second)
    assert_same(second.encode(PROMPTS), expected, atol=0)
    assert len(counts) == 1  # the prompts alone
    other = TextEncoder.load(small_gemma, instruction="official")
    counts = count_tokens(other)
    other.encode(PROMPTS)
    assert len(counts) == 2
    state = load_file(small_gemma / "instruction.safetensors")
    save_file(
        {**state, "first_state": torch.zeros(1, 1, 3)}, small_gemma / "instruction.safetensors"
    )
    with pytest.raises(WeightsError, match=r"instruction\.safetensors does not fit"):
        TextEncoder.load(small_gemma).encode(PROMPTS)
