"""LoRA files: diffusers' are read here and ours there, with equal outputs; bad ones are named.

Also tests `weights/low_rank.py`.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from opensana.cli.generate import Generate
from opensana.errors import ConfigError, OpensanaError, RequestError, WeightsError
from opensana.pipeline import Sana
from opensana.runtime.packed import pack
from opensana.train.recipe import LoraRecipe
from opensana.train.transformer.lora import add_adapters, lora_export
from opensana.transformer.model import Transformer
from opensana.weights.lora import FILE, METADATA, merge_lora, read_lora
from tests import tiny

TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ff.conv_inverted", "proj_out")
KEY = "transformer.transformer_blocks.0.attn1.to_q"


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(4)
    latent = torch.randn(2, 8, 4, 4, generator=draw)
    return latent, torch.tensor([900.0, 20.0]), torch.randn(2, 5, tiny.TEXT_WIDTH, generator=draw)


def velocity(model: Any) -> Tensor:
    """Of ours or of diffusers' transformer."""
    latent, timestep, text = inputs()
    with torch.no_grad():
        if isinstance(model, Transformer):
            return model(latent, timestep, text)
        return model(latent, text, timestep, return_dict=False)[0]


def shaken(model: torch.nn.Module) -> None:
    """Adapters as if they were trained: the second matrix is no longer zero."""
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if ".lora_" in name:
                value.copy_(0.3 * torch.randn(value.shape, generator=draw))


def reference(model: Transformer) -> Any:
    """diffusers' transformer with the same weights."""
    diffusers = pytest.importorskip("diffusers")
    config = {k: v for k, v in model.config.to_dict().items() if not k.startswith("_")}
    theirs = diffusers.SanaTransformer2DModel(**config).eval()
    theirs.load_state_dict(model.state_dict(), strict=True)
    return theirs


def written(folder: Path, model: Transformer | None = None, **options: Any) -> Transformer:
    """A model with adapters, whose LoRA is in `folder / "export"`."""
    model = model or tiny.transformer()
    recipe = LoraRecipe(**{"rank": 3, "alpha": 6.0, "targets": TARGETS, **options})
    add_adapters(model, recipe, seed=1)
    shaken(model)
    lora_export(recipe, model, folder).write()
    return model.eval()


def matrices(rank: int = 2, outputs: int = 16, inputs: int = 16) -> dict[str, Tensor]:
    return {
        f"{KEY}.lora_A.weight": torch.ones(rank, inputs),
        f"{KEY}.lora_B.weight": torch.ones(outputs, rank),
    }


@pytest.mark.parametrize("config", [tiny.TRANSFORMER, tiny.SPRINT], ids=["sana", "normed"])
def test_ours_merge_and_load_in_diffusers(tmp_path: Path, config):
    if config is tiny.SPRINT:
        config = replace(config, guidance_embeds=False)
    adapted = velocity(written(tmp_path, tiny.transformer(config)))
    merged, plain = tiny.transformer(config), velocity(tiny.transformer(config))
    assert (adapted - plain).abs().max() > 0.01
    merge_lora(merged, read_lora(tmp_path / "export"))
    torch.testing.assert_close(velocity(merged), adapted, atol=1e-5, rtol=1e-5)

    theirs = reference(tiny.transformer(config))
    theirs.load_lora_adapter(load_file(tmp_path / "export" / FILE), prefix="transformer")
    alpha_is_rank = tiny.transformer(config)
    merge_lora(alpha_is_rank, read_lora(tmp_path / "export"), scale=0.5)  # alpha is twice the rank
    torch.testing.assert_close(velocity(theirs), velocity(alpha_is_rank), atol=1e-5, rtol=1e-5)


def test_diffusers_pipeline_reads_our_alpha(tmp_path: Path):
    diffusers = pytest.importorskip("diffusers")
    adapted = velocity(written(tmp_path))
    theirs = reference(tiny.transformer())
    state, metadata = diffusers.SanaPipeline.lora_state_dict(
        tmp_path / "export", return_lora_metadata=True
    )
    diffusers.SanaPipeline.load_lora_into_transformer(state, theirs, metadata=metadata)
    torch.testing.assert_close(velocity(theirs), adapted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 4, "lora_alpha": 4},
        {"r": 4, "lora_alpha": 2, "use_rslora": True},
        {"r": 4, "lora_alpha": 2, "rank_pattern": {"to_k": 2}, "alpha_pattern": {"to_v": 8}},
    ],
    ids=["plain", "rslora", "patterns"],
)
def test_diffusers_files_load_here(tmp_path: Path, settings: dict[str, Any]):
    diffusers = pytest.importorskip("diffusers")
    from diffusers.training_utils import _collate_lora_metadata
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    theirs = reference(tiny.transformer())
    theirs.add_adapter(LoraConfig(**settings, target_modules=list(TARGETS)))
    shaken(theirs)
    diffusers.SanaPipeline.save_lora_weights(
        tmp_path,
        transformer_lora_layers=get_peft_model_state_dict(theirs),
        **_collate_lora_metadata({"transformer": theirs}),
    )
    ours = tiny.transformer()
    merge_lora(ours, read_lora(tmp_path))
    torch.testing.assert_close(velocity(ours), velocity(theirs), atol=1e-5, rtol=1e-5)


def test_without_settings_alpha_is_the_rank(tmp_path: Path):
    save_file(matrices(rank=4), tmp_path / FILE)
    ours, plain = tiny.transformer(), tiny.transformer()
    merge_lora(ours, read_lora(tmp_path / FILE), scale=0.5)
    changed = ours.blocks[0].attn1.to_q.weight - plain.blocks[0].attn1.to_q.weight
    torch.testing.assert_close(changed, torch.full((16, 16), 2.0))
    state, before = ours.state_dict(), plain.state_dict()
    assert [k for k in state if not torch.equal(state[k], before[k])] == [
        f"{KEY.removeprefix('transformer.')}.weight"
    ]


def test_half_precision_weights_are_rounded_once(tmp_path: Path):
    written(tmp_path)
    stored = tiny.transformer().half()
    exact = tiny.transformer().half().float()
    for model in (stored, exact):
        merge_lora(model, read_lora(tmp_path / "export"))
    assert torch.equal(stored.float().proj_out.weight, exact.proj_out.weight)


def test_a_model_is_loaded_with_its_lora(tmp_path: Path):
    whole = tiny.sana()
    whole.save(tmp_path / "model")
    written(tmp_path)
    request: dict[str, Any] = {"seed": 3, "steps": 2, "width": 64, "height": 64}
    load: dict[str, Any] = {"device": "cpu", "dtype": "float32"}
    plain = Sana.load(tmp_path / "model", **load)
    with_lora = Sana.load(tmp_path / "model", lora=tmp_path / "export", lora_scale=0.8, **load)
    none = Sana.load(tmp_path / "model", lora=tmp_path / "export", lora_scale=0, **load)
    expected = tiny.transformer()
    merge_lora(expected, read_lora(tmp_path / "export"), scale=0.8)
    torch.testing.assert_close(velocity(with_lora.transformer), velocity(expected))
    pictures = [model.generate("a cat", **request)[0] for model in (plain, with_lora, none)]
    first, second, third = (picture.image.tobytes() for picture in pictures)
    assert first == third != second
    assert pictures[1].provenance["lora_scale"] == 0.8

    # The picture records which LoRA it needs, and how much of it.
    pictures[1].save(tmp_path / "drawn.png")
    lora, drawn = str(tmp_path / "export"), tmp_path / "drawn.png"
    with pytest.raises(RequestError, match=r"drawn with --lora; give it again"):
        Generate(from_png=drawn).inputs()
    Generate(from_png=drawn, lora=(lora,)).inputs()
    save_file(matrices(), tmp_path / "other.safetensors")
    with pytest.raises(RequestError, match="is not the --lora"):
        Generate(from_png=drawn, lora=(str(tmp_path / "other.safetensors"),)).inputs()
    with pytest.raises(ConfigError, match="lora_scale has 1 values for 0 LoRAs"):
        Generate(lora_scale=(0.5,)).inputs()


def test_merging_comes_before_packing(tmp_path: Path):
    adapted = velocity(written(tmp_path))
    model = tiny.transformer()
    merge_lora(model, read_lora(tmp_path / "export"))
    pack(model)
    torch.testing.assert_close(velocity(model), adapted, atol=1e-5, rtol=1e-5)


def settings(**values: Any) -> dict[str, str]:
    return {METADATA: json.dumps({f"transformer.{k}": v for k, v in values.items()})}


@pytest.mark.parametrize(
    ("state", "metadata", "message"),
    [
        ({"a.lora_A.weight": torch.ones(2, 2)}, {}, "no key of a Sana LoRA"),
        ({f"{KEY}.alpha": torch.ones(1)}, {}, "no key of a Sana LoRA"),
        ({f"{KEY}.lora_A.weight": torch.ones(2, 2)}, {}, "lora_A.weight alone"),
        (matrices() | {f"{KEY}.lora_B.weight": torch.ones(16, 3)}, {}, "has 2, lora_B 3"),
        (matrices() | {f"{KEY}.lora_B.weight": torch.ones(16)}, {}, "no matrix of numbers"),
        (matrices() | {f"{KEY}.lora_A.weight": torch.full((2, 16), torch.nan)}, {}, "NaN"),
        (matrices(), settings(use_dora=True), "trained with use_dora"),
        (matrices(), settings(lora_alpha="8"), "must be finite numbers"),
        (matrices(), settings(lora_alpha=1, alpha_pattern=[1]), "must be finite numbers"),
        (matrices(), {METADATA: "{"}, "not valid JSON"),
        (matrices(), {METADATA: "[1]"}, "one JSON object"),
        ({}, {"format": "pt"}, "holds no tensors"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, state, metadata, message: str):
    save_file(state, tmp_path / FILE, metadata=metadata)
    with pytest.raises(WeightsError, match=message) as caught:
        read_lora(tmp_path)
    assert FILE in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("transformer_blocks.0.attn1.to_w", (16, 16), "did you mean 'transformer_blocks.0.attn1"),
        ("transformer_blocks.7.attn1.to_q", (16, 16), "is no layer of this model"),
        ("transformer_blocks.0.norm1", (16, 16), "is no layer of this model"),
        ("caption_norm", (16, 16), "is no layer of this model"),
        ("proj_out", (16, 16), "16 inputs and 16 outputs, the model's has 16 and 8"),
        ("transformer_blocks.1.ff.conv_depth", (80, 80), "the model's has 9 and 80"),
    ],
)
def test_another_architecture_changes_nothing(tmp_path: Path, name: str, shape, message: str):
    wrong = {
        f"transformer.{name}.lora_A.weight": torch.ones(1, shape[1]),
        f"transformer.{name}.lora_B.weight": torch.ones(shape[0], 1),
    }
    save_file(matrices() | wrong, tmp_path / FILE)
    model, before = tiny.transformer(), velocity(tiny.transformer())
    with pytest.raises(WeightsError, match=message):
        merge_lora(model, read_lora(tmp_path))
    assert torch.equal(velocity(model), before)


def test_pickles_and_missing_files_are_not_opened(tmp_path: Path):
    pickled = tmp_path / "pytorch_lora_weights.bin"
    pickled.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    for source in (tmp_path, pickled):
        with pytest.raises(WeightsError, match="may hold code and is never opened"):
            read_lora(source)
    with pytest.raises(WeightsError, match="no LoRA file or folder"):
        read_lora(tmp_path / "nowhere")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\xff" * 64)
    with pytest.raises(WeightsError, match="damaged"):
        read_lora(broken)


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_the_scale_is_a_number(tmp_path: Path, scale: float):
    save_file(matrices(), tmp_path / FILE)
    with pytest.raises(ConfigError, match="lora_scale must be a finite number"):
        merge_lora(tiny.transformer(), read_lora(tmp_path), scale=scale)


def test_wrong_targets_are_named():
    with pytest.raises(OpensanaError, match=r"'to_qq' names no linear layer.*did you mean 'to_q'"):
        add_adapters(tiny.transformer(), LoraRecipe(targets=("to_k", "to_qq")), seed=0)
    with pytest.raises(ConfigError, match="'norm_q' names no linear layer"):
        add_adapters(tiny.transformer(tiny.SPRINT), LoraRecipe(targets=("norm_q",)), seed=0)
