"""Official files into a model folder that draws; hostile ones into an error."""

import os
import pickle
from pathlib import Path

import pytest
import torch

from opensana.errors import ConfigError, WeightsError
from opensana.files.writing import read_json
from opensana.models.convert import convert
from opensana.pipeline import Sana
from opensana.weights.safetensors import read_safetensors, write_safetensors
from tests import tiny

PAIR = ("blocks.0.attn.proj.weight", "transformer_blocks.0.attn1.to_out.0.weight")


def official(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    names = tiny_names()
    return names.official_transformer(state, sprint=False)


def tiny_names():
    from tests.weights import test_rename_tables as test_names

    return test_names


def pth(tmp_path: Path, **more) -> Path:
    state = official(dict(tiny.transformer().state_dict()))
    torch.save({"state_dict": state, "epoch": 3, **more}, tmp_path / "model.pth")
    return tmp_path / "model.pth"


def test_a_transformer_file_becomes_a_model_that_draws(tmp_path: Path) -> None:
    whole = tiny.sana(instruction="none")
    base = whole.save(tmp_path / "base")
    made = convert(pth(tmp_path), tmp_path / "made", config=tiny.TRANSFORMER, base=base, shift=2.0)
    loaded = Sana.load(made, device="cpu")
    assert loaded.shift == 2.0
    state = whole.transformer.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in loaded.transformer.state_dict().items())
    assert len(loaded.generate("a cat", steps=1)) == 1


def test_averaged_weights_are_taken_when_asked(tmp_path: Path) -> None:
    state = official(dict(tiny.transformer().state_dict()))
    file = pth(tmp_path, state_dict_ema={k: v + 1 for k, v in state.items()})
    made = convert(file, tmp_path / "made", config=tiny.TRANSFORMER, ema=True)
    ours, theirs = PAIR[1], PAIR[0]
    assert torch.equal(read_safetensors(made / "transformer")[ours], state[theirs] + 1)
    with pytest.raises(WeightsError, match="no averaged weights"):
        convert(pth(tmp_path), tmp_path / "made", config=tiny.TRANSFORMER, ema=True)


def test_an_autoencoder_file_becomes_a_vae_folder(tmp_path: Path) -> None:
    model = tiny.autoencoder()
    state = tiny_names().official_autoencoder(dict(model.state_dict()), plain_down=True)
    [file] = write_safetensors(state, tmp_path, name="model")
    made = convert(file, tmp_path / "made", config=tiny.AUTOENCODER)
    assert read_json(made / "vae" / "config.json")["_class_name"] == "AutoencoderDC"
    found = read_safetensors(made / "vae")
    assert all(torch.equal(found[key], value) for key, value in model.state_dict().items())


def test_the_wrong_preset_names_a_tensor(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"model\.pth"):
        convert(pth(tmp_path), tmp_path / "made", preset="sana_600m_512")
    assert not (tmp_path / "made").exists()
    with pytest.raises(ConfigError, match="did you mean 'sana_600m_512'"):
        convert(pth(tmp_path), tmp_path / "made", preset="sana_600m_51")
    with pytest.raises(ConfigError, match="either a preset or a config"):
        convert(pth(tmp_path), tmp_path / "made")


class Canary:
    """Unpickled, it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["torch", "pickle", "old torch"])
def test_code_in_a_file_does_not_run(tmp_path: Path, form: str) -> None:
    canary, file = tmp_path / "canary", tmp_path / "bad.pth"
    content = {"state_dict": Canary(canary)}
    if form == "pickle":
        file.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=form == "torch")
    with pytest.raises(WeightsError, match=r"bad\.pth"):
        convert(file, tmp_path / "made", config=tiny.TRANSFORMER)
    assert not canary.exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"text", b"\x80\x02.", bytes(range(64))])
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=r"bad\.pth"):
        convert(tmp_path / "bad.pth", tmp_path / "made", config=tiny.TRANSFORMER)


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {}, {"state_dict": {"a": "text"}}])
def test_a_file_without_tensors_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(WeightsError, match=r"odd\.pth"):
        convert(tmp_path / "odd.pth", tmp_path / "made", config=tiny.TRANSFORMER)


# ------------------------------------------------------------------ names that wrappers give


PREFIXED = (
    *("module.", "_orig_mod.", "model.", "model.diffusion_model.", "diffusion_model."),
    *("module._orig_mod.", "_orig_mod.module.", "module.model.diffusion_model.", "transformer."),
    *("_fsdp_wrapped_module._orig_mod.", "model.diffusion_model.module._orig_mod."),
)


@pytest.mark.parametrize("prefix", PREFIXED)
@pytest.mark.parametrize("suffix", ["pth", "PTH", "safetensors", "SafeTensors", "SAFETENSORS"])
def test_wrappers_around_a_transformer_change_nothing(
    tmp_path: Path, prefix: str, suffix: str
) -> None:
    expected = tiny.transformer().state_dict()
    state = {prefix + key: value for key, value in official(dict(expected)).items()}
    file = tmp_path / f"model.{suffix}"
    if suffix.lower() == "pth":
        torch.save({"state_dict": state}, file)
    else:
        write_safetensors(state, tmp_path, name="model")[0].rename(file)
    made = convert(file, tmp_path / "made", config=tiny.TRANSFORMER)
    found = read_safetensors(made / "transformer")
    assert all(torch.equal(found[key], value) for key, value in expected.items())


@pytest.mark.parametrize("table", ["state_dict", "model_state_dict", "model", "module", None])
def test_the_table_of_a_training_is_found(tmp_path: Path, table: str | None) -> None:
    """As DDP, torch.compile, an average and a wrapper of one block leave it, published names."""
    expected = tiny.transformer().state_dict()
    state = {f"module.{key}": value for key, value in expected.items()}
    state = {k.replace("_blocks.0.", "_blocks.0._orig_mod."): v for k, v in state.items()}
    state["n_averaged"] = torch.tensor(7)
    torch.save(state if table is None else {table: state, "step": 3}, tmp_path / "model.pt")
    made = convert(tmp_path / "model.pt", tmp_path / "made", config=tiny.TRANSFORMER)
    found = read_safetensors(made / "transformer")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())


@pytest.mark.parametrize("prefix", ["module.", "first_stage_model.", "vae._orig_mod."])
@pytest.mark.parametrize("published", [True, False])
def test_wrappers_around_an_autoencoder_change_nothing(
    tmp_path: Path, prefix: str, published: bool
) -> None:
    expected = dict(tiny.autoencoder().state_dict())
    state = expected
    if not published:
        state = tiny_names().official_autoencoder(expected, plain_down=True)
    [file] = write_safetensors({prefix + k: v for k, v in state.items()}, tmp_path, name="model")
    made = convert(file, tmp_path / "made", config=tiny.AUTOENCODER)
    found = read_safetensors(made / "vae")
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_a_prefix_that_some_names_lack_is_an_error(tmp_path: Path) -> None:
    state = official(dict(tiny.transformer().state_dict()))
    mixed = {f"module.{k}" if k.startswith("blocks.") else k: v for k, v in state.items()}
    torch.save(mixed, tmp_path / "model.pth")
    with pytest.raises(WeightsError, match=r"'module\.blocks.* belongs to no known model"):
        convert(tmp_path / "model.pth", tmp_path / "made", config=tiny.TRANSFORMER)
    twice = state | {f"_orig_mod.{key}": value for key, value in state.items()}
    torch.save(twice, tmp_path / "model.pth")
    with pytest.raises(WeightsError, match="some tensors twice"):
        convert(tmp_path / "model.pth", tmp_path / "made", config=tiny.TRANSFORMER)
