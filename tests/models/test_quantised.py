"""Quantised model folders: written, loaded, drawn from, and what is said of wrong use.

Also tests `models/open.py`.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from opensana.errors import ConfigError, WeightsError
from opensana.models.load import load_transformer
from opensana.models.parts import quantization, stored_dtype
from opensana.pipeline import Sana
from opensana.runtime.quantize import Quantization, quantization_of, quantize
from opensana.train.transformer.initial import check_trainable, trainable
from tests import tiny

SCHEMES = ["w8a8", "w8", "w4"]
pytestmark = pytest.mark.filterwarnings("ignore:.* saves memory here, not time")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.sana(instruction="none").save(tmp_path_factory.mktemp("plain") / "tiny")


def drawn(sana: Sana) -> np.ndarray:
    [picture] = sana.generate("a cat", seed=1, steps=2)
    return np.asarray(picture.image)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_folder_that_was_saved_draws_the_same_pixels(
    plain: Path, tmp_path: Path, scheme: str
) -> None:
    sana = Sana.load(plain, device="cpu", quantize=scheme)  # pyright: ignore[reportArgumentType]
    folder = sana.save(tmp_path / "quantised")
    config = json.loads((folder / "transformer" / "config.json").read_text())
    assert config["quantization_config"]["scheme"] == scheme
    found = quantization(folder / "transformer")
    assert found is not None and found.scheme == scheme
    assert stored_dtype(folder) == torch.float32
    assert np.array_equal(drawn(Sana.load(folder, device="cpu")), drawn(sana))


def test_what_is_quantised_is_recorded_in_the_picture(plain: Path) -> None:
    sana = Sana.load(plain, device="cpu", quantize="w8a8")
    [picture] = sana.generate("a cat", seed=1, steps=1)
    assert json.loads(picture.metadata["opensana"])["quantization"] == "w8a8"


def test_wrong_use_is_one_line(plain: Path, tmp_path: Path) -> None:
    folder = Sana.load(plain, device="cpu", quantize="w8").save(tmp_path / "w8")
    with pytest.raises(ConfigError, match=r"is quantised already \(w8\): leave quantize out"):
        Sana.load(folder, device="cpu", quantize="w4")
    with pytest.raises(ConfigError, match="compile is for plain models"):
        Sana.load(folder, device="cpu", compile=True)
    with pytest.raises(ConfigError, match=r"quantised \(w8\) cannot be trained; start from the pl"):
        check_trainable(str(folder))
    with pytest.raises(ConfigError, match="cannot be trained"):
        trainable(load_transformer(folder))


def test_other_programs_folders_are_refused_by_name(plain: Path, tmp_path: Path) -> None:
    folder = Sana.load(plain, device="cpu").save(tmp_path / "foreign")
    file = folder / "transformer" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "quantization_config": {"quant_method": "torchao"}}))
    with pytest.raises(WeightsError, match="is quantised by torchao, which opensana does not read"):
        Sana.load(folder, device="cpu")


def test_whole_numbers_without_the_configuration_are_no_weights(
    plain: Path, tmp_path: Path
) -> None:
    folder = Sana.load(plain, device="cpu", quantize="w8").save(tmp_path / "bare")
    file = folder / "transformer" / "config.json"
    config = json.loads(file.read_text())
    del config["quantization_config"]
    file.write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="weights do not fit the model: unexpected"):
        Sana.load(folder, device="cpu")


def test_diffusers_refuses_the_method_by_its_name(plain: Path, tmp_path: Path) -> None:
    from diffusers import SanaTransformer2DModel  # pyright: ignore[reportPrivateImportUsage]

    folder = Sana.load(plain, device="cpu", quantize="w8a8").save(tmp_path / "ours")
    with pytest.raises(ValueError, match="Unknown quantization type, got opensana"):
        SanaTransformer2DModel.from_pretrained(folder / "transformer")


def test_a_lora_is_merged_before_and_one_of_another_shape_is_refused(
    plain: Path, tmp_path: Path
) -> None:
    name, (out, channels) = "transformer_blocks.0.attn1.to_q", (16, 16)
    down, up = torch.randn(2, channels), torch.randn(out, 2)
    keys = (f"transformer.{name}.lora_A.weight", f"transformer.{name}.lora_B.weight")
    save_file(dict(zip(keys, (down, up), strict=True)), tmp_path / "lora.safetensors")
    save_file(
        dict(zip(keys, (down[:, :8].contiguous(), up), strict=True)), tmp_path / "bad.safetensors"
    )
    folder = Sana.load(plain, device="cpu", quantize="w8").save(tmp_path / "w8")
    merged = Sana.load(folder, device="cpu", lora=tmp_path / "lora.safetensors")
    whole = Sana.load(plain, device="cpu", lora=tmp_path / "lora.safetensors")
    assert quantization_of(merged.transformer) == Quantization("w8")
    error = np.abs(drawn(merged).astype(float) - drawn(whole)).mean()
    assert error < 3 and not np.array_equal(drawn(merged), drawn(Sana.load(folder, device="cpu")))
    with pytest.raises(WeightsError, match=r"bad\.safetensors"):
        Sana.load(folder, device="cpu", lora=tmp_path / "bad.safetensors")


def test_the_file_holds_whole_numbers_and_their_scales(plain: Path, tmp_path: Path) -> None:
    folder = Sana.load(plain, device="cpu", quantize="w8a8").save(tmp_path / "w8a8")
    state = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    name = "transformer_blocks.1.ff.conv_point"
    assert state[f"{name}.weight"].dtype == torch.int8
    assert state[f"{name}.weight_scale"].dtype == torch.float32
    network = tiny.transformer()
    quantize(network, Quantization("w8a8"))
    assert torch.equal(network.state_dict()[f"{name}.weight"], state[f"{name}.weight"])
