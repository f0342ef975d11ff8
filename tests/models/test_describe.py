"""Every published model: its configs as the hub has them, its settings, and what is shown of it.

Also tests `models/memory.py` and `weights/published_models.py`.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC
from diffusers.models.transformers.sana_transformer import SanaTransformer2DModel
from torch import nn

from opensana.autoencoder.model import Autoencoder
from opensana.cli import main
from opensana.errors import WeightsError
from opensana.models import presets
from opensana.models.describe import describe, describe_published
from opensana.models.parts import transformer_config
from opensana.models.save import write_transformer
from opensana.pipeline import Sana
from opensana.text.loading import check_config
from opensana.transformer.model import Transformer
from opensana.weights import published_models as published
from opensana.weights.published_models import MODELS, hub_id, published_model
from tests import tiny
from tests.configs import SANA_600M
from tests.gguf_files import write_gemma

GEMMA_2_2B: dict[str, Any] = {
    "architectures": ["Gemma2Model"],
    "model_type": "gemma2",
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "vocab_size": 256000,
    "max_position_embeddings": 8192,
    "sliding_window": 4096,
    "bos_token_id": 2,
    "eos_token_id": [1, 107],
    "pad_token_id": 0,
}
# As in the repositories: what differs from 0.6B at 1024 pixels.
LARGE = {
    "num_attention_heads": 70,
    "num_layers": 20,
    "num_cross_attention_heads": 20,
    "cross_attention_head_dim": 112,
    "cross_attention_dim": 2240,
}
NORMED = {"qk_norm": "rms_norm_across_heads"}
SPRINT = {**NORMED, "guidance_embeds": True, "guidance_embeds_scale": 0.1, "timestep_scale": 1.0}
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "Sana_600M_512px": {"sample_size": 16},
    "Sana_600M_1024px": {},
    "Sana_1600M_512px": {**LARGE, "sample_size": 16},
    "Sana_1600M_512px_MultiLing": {**LARGE, "sample_size": 16},
    "Sana_1600M_1024px": LARGE,
    "Sana_1600M_1024px_MultiLing": LARGE,
    "Sana_1600M_1024px_BF16": LARGE,
    "Sana_1600M_2Kpx_BF16": {**LARGE, "sample_size": 64, "interpolation_scale": 1.0},
    "Sana_1600M_4Kpx_BF16": {**LARGE, "sample_size": 128, "interpolation_scale": 2.0},
    "SANA1.5_1.6B_1024px": {**LARGE, **NORMED},
    "SANA1.5_4.8B_1024px": {**LARGE, **NORMED, "num_layers": 60},
    "Sana_Sprint_0.6B_1024px": {**SPRINT, "interpolation_scale": None},
    "Sana_Sprint_1.6B_1024px": {**LARGE, **SPRINT, "interpolation_scale": None},
    "Sana_Sprint_0.6B_1024px_teacher": NORMED,
    "Sana_Sprint_1.6B_1024px_teacher": {**LARGE, **NORMED},
}


def transformer_json(name: str) -> dict[str, Any]:
    return SANA_600M | TRANSFORMERS[name]


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def plain(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not key.startswith("_")}


def test_the_tables_name_the_same_models() -> None:
    assert set(MODELS) == set(TRANSFORMERS)
    for repository in published.AUTOENCODERS:
        assert presets.published_autoencoder(repository) in presets.AUTOENCODERS.values()
    assert len(published.AUTOENCODERS) == len(presets.AUTOENCODERS)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_published_transformer_has_the_shapes_of_diffusers(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(transformer_json(name)))
    config = transformer_config(tmp_path)
    assert config == presets.TRANSFORMERS[MODELS[name].transformer]
    # Depth repeats one shape: two blocks show it, and the count of all is another test's.
    short = transformer_json(name) | {"num_layers": 2}
    with torch.device("meta"):
        ours = Transformer(replace(config, num_layers=2))
        theirs = SanaTransformer2DModel(**plain(short))
    assert shapes(ours) == shapes(theirs)


@pytest.mark.parametrize("repository", published.AUTOENCODERS)
def test_a_published_autoencoder_has_the_shapes_of_diffusers(repository: str) -> None:
    config = presets.published_autoencoder(repository)
    assert config is not None
    with torch.device("meta"):
        ours = Autoencoder(config)
        theirs = AutoencoderDC(**plain(config.to_dict()))
    assert shapes(ours) == shapes(theirs)


def test_the_published_text_encoder_fits_every_transformer(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModel

    (tmp_path / "config.json").write_text(json.dumps(GEMMA_2_2B))
    check_config(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    assert type(model).__name__ == "Gemma2Model"
    assert sum(value.numel() for value in model.parameters()) == 2_614_341_888
    for known in MODELS.values():
        assert presets.TRANSFORMERS[known.transformer].caption_channels == config.hidden_size


def test_positions_and_shifts_are_those_of_the_table() -> None:
    for name, known in MODELS.items():
        large = "2K" in name or "4K" in name
        positions = presets.TRANSFORMERS[known.transformer].positions
        assert positions == ("sin-cos" if large else "none"), name
        assert known.shift == (6.0 if "4K" in name else 1.0 if known.steps == 2 else 3.0), name
        assert known.dtype == ("fp16" if name.endswith(("M_512px", "M_1024px", "Ling")) else "bf16")


# ------------------------------------------------------------------ names and what is shown


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_every_way_to_write_a_name_finds_the_repository(name: str) -> None:
    wanted = f"Efficient-Large-Model/{name}_diffusers"
    for form in (name, name.lower(), f"{name}_diffusers", wanted, f"/models/{name}_diffusers/"):
        assert hub_id(form) == wanted
        assert published_model(form) is MODELS[name]
    assert hub_id(f"{name}_and_more") is None


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_published_model_is_described_without_its_files(name: str) -> None:
    shown = describe(f"Efficient-Large-Model/{name}_diffusers", device="cpu")
    known = MODELS[name]
    assert shown == describe_published(name, device="cpu") | {"model": shown["model"]}  # pyright: ignore[reportOptionalOperand]
    assert "not on this machine" in shown["weights"]
    assert (shown["native_size"], shown["dtype_rule"]) == (known.native_size, known.dtype_rule)
    assert "non-commercial" in shown["licence"]
    assert f"{known.native_size}x{known.native_size}" in shown["binned_sizes"]
    assert shown["memory"]["total"] > shown["memory"]["weights"] > 2 * 2_614_341_888


def test_info_of_a_published_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers"]) == 0
    shown = capsys.readouterr().out
    assert "never fp16" in shown
    assert "not on this machine" in shown
    assert main(["info", "mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["scaling_factor"] == 0.41407


def test_info_of_a_name_without_its_owner(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "Sana_1600M_1024px"]) == 1
    assert "'Efficient-Large-Model/Sana_1600M_1024px_diffusers'" in capsys.readouterr().err


def test_a_folder_is_described_by_its_own_files(tmp_path: Path) -> None:
    network = tiny.transformer(replace(tiny.TRANSFORMER, sample_size=16))
    sana = replace(tiny.sana(), transformer=network)
    shown = describe(sana.save(tmp_path / "Sana_600M_512px_diffusers"), device="cpu")
    assert shown["licence"] == sana.info.defaults.licence
    assert len(shown["binned_sizes"]) == 33
    assert (shown["computed_in"], shown["positions"]) == ("float32", "none")


def test_a_text_encoder_in_a_gguf_file_is_shown(tmp_path: Path) -> None:
    folder = tiny.sana().save(tmp_path / "model")
    plain = describe(folder, device="cpu")
    shutil.rmtree(folder / "text_encoder")
    (folder / "text_encoder").mkdir()
    write_gemma(folder / "text_encoder" / "a.gguf", "gemma2", ("Q8_0",))
    with pytest.raises(WeightsError, match="the text encoder's states have 64 channels"):
        describe(folder)
    shutil.rmtree(folder / "transformer")
    wide = tiny.transformer(replace(tiny.TRANSFORMER, caption_channels=64))
    write_transformer(wide, folder / "transformer")
    found = describe(folder, device="cpu")
    part = found["parts"]["text_encoder"]
    assert (part["class"], part["dtype"]) == ("Gemma2Model", "GGUF: Q8_0, F32")
    assert part["parameters"] < part["bytes"] < 1.2 * part["parameters"]
    ours = found["memory"]["weights"] - 4 * (found["parameters"] - part["parameters"])
    assert part["parameters"] < ours < 1.2 * part["parameters"]
    assert plain["parts"]["text_encoder"]["dtype"] == "F32"
    assert Sana.load(folder, device="cpu").text.model.embed_tokens.weight.dtype == torch.int8
