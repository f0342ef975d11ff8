"""The ControlNet computes what diffusers' SanaControlNetModel computes, from the same files."""

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from opensana.errors import ConfigError, WeightsError
from opensana.files.writing import read_json
from opensana.models.load import load_controlnet
from opensana.models.save import write_controlnet
from opensana.transformer import Transformer, TransformerConfig
from opensana.transformer.controlnet import Controlled, ControlNet, ControlNetConfig, control_config
from tests.tiny import randomise

diffusers = pytest.importorskip("diffusers")

BASE = TransformerConfig(
    in_channels=4,
    out_channels=4,
    num_attention_heads=4,
    attention_head_dim=16,
    num_layers=4,
    num_cross_attention_heads=2,
    cross_attention_head_dim=32,
    cross_attention_dim=64,
    caption_channels=24,
    sample_size=8,
)
VARIANTS: dict[str, dict[str, Any]] = {
    "sana-1.0": {},
    "2k": {"interpolation_scale": 1.0},
    "patch-2": {"patch_size": 2, "interpolation_scale": 2.0},
    "biases-and-affine": {"attention_bias": True, "norm_elementwise_affine": True},
}


def pair(blocks: int = 2, **options: Any) -> tuple[Transformer, ControlNet]:
    """Random networks whose every term matters."""
    torch.manual_seed(0)
    base = Transformer(replace(BASE, **options)).eval()
    control = ControlNet(control_config(base.config, blocks)).eval()
    for seed, network in enumerate((base, control)):
        randomise(network, seed, scale=0.15)
        network.requires_grad_(False)
    return base, control


def inputs(seed: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    latent, condition = torch.randn(2, 2, 4, 4, 12, generator=draw)
    text = 3 * torch.randn(2, 7, 24, generator=draw)
    mask = torch.tensor([[1, 1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0, 0]]).bool()
    return latent, torch.tensor([999.0, 12.5]), text, mask, condition


def reference(base: Transformer, control: ControlNet, folder: Path) -> tuple[Any, Any]:
    """The same pair in diffusers, the ControlNet read from the files that we write."""
    theirs = diffusers.SanaTransformer2DModel(**base.config.to_dict()).eval()
    theirs.load_state_dict(base.state_dict(), strict=True)
    write_controlnet(control, folder / "controlnet")
    read, report = diffusers.SanaControlNetModel.from_pretrained(
        folder, subfolder="controlnet", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    return theirs, read.eval()


def close(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_residuals_and_velocity_equal_diffusers(variant: str, tmp_path: Path) -> None:
    base, control = pair(**VARIANTS[variant])
    transformer, theirs = reference(base, control, tmp_path)
    latent, timestep, text, mask, condition = inputs()
    given = {"encoder_hidden_states": text, "encoder_attention_mask": mask.long()}
    expected = theirs(
        latent, timestep=timestep, controlnet_cond=condition, conditioning_scale=0.7, **given
    ).controlnet_block_samples
    found = control(latent, timestep, text, mask, condition)
    for ours, other in zip(found, expected, strict=True):
        close(0.7 * ours, other)
    velocity = transformer(
        latent, timestep=timestep, controlnet_block_samples=tuple(expected), **given
    ).sample
    network = Controlled(base, control)
    prepared = network.prepare(text, mask, condition, scale=0.7)
    close(network.velocity(latent, timestep, prepared), velocity)
    close(network.velocity(latent, timestep, network.fold(prepared)), velocity)
    plain = transformer(latent, timestep=timestep, **given).sample
    assert (plain - velocity).abs().max() > 1e-2 * plain.abs().max(), "it has an influence"


@torch.no_grad()
def test_a_new_one_changes_no_bit() -> None:
    base, _ = pair()
    control = ControlNet.of(base, 3)
    latent, timestep, text, mask, condition = inputs()
    expected = base(latent, timestep, text, mask)
    assert torch.equal(Controlled(base, control)(latent, timestep, text, mask, condition), expected)
    state, copied = base.state_dict(), control.state_dict()
    own = [name for name in copied if name not in state]
    assert all(name.startswith(("input_block", "controlnet_blocks")) for name in own)
    assert all(torch.equal(value, state[name]) for name, value in copied.items() if name in state)
    assert len(own) == 2 * (1 + 3)


@torch.no_grad()
def test_one_condition_serves_a_batch_and_scale_0_is_none() -> None:
    base, control = pair()
    latent, timestep, text, mask, condition = inputs()
    network, one = Controlled(base, control), condition[:1]
    both = network.prepare(text, mask, one.expand(2, -1, -1, -1))
    single = network.prepare(text, mask, one)
    close(
        network.velocity(latent, timestep, single),
        network.velocity(latent, timestep, both),
    )
    off = network.velocity(latent, timestep, replace(single, scale=0.0))
    assert torch.equal(off, base.velocity(latent, timestep, single.text))


@pytest.mark.parametrize("normed", [False, True])
def test_files_keep_every_bit(normed: bool, tmp_path: Path) -> None:
    base, control = pair(qk_norm="rms_norm_across_heads" if normed else None)
    write_controlnet(control, tmp_path / "controlnet")
    values = read_json(tmp_path / "controlnet" / "config.json")
    assert values["_class_name"] == "SanaControlNetModel" and values["num_layers"] == 2
    assert ("qk_norm" in values) == normed and "guidance_embeds" not in values
    for folder in (tmp_path, tmp_path / "controlnet"):
        read = load_controlnet(folder, base.config)
        assert read.config == control.config
        state = read.state_dict()
        assert all(torch.equal(state[n], value) for n, value in control.state_dict().items())


def test_the_defaults_are_the_published_ones() -> None:
    signature = inspect.signature(diffusers.SanaControlNetModel.__init__).parameters
    theirs = {name: entry.default for name, entry in signature.items() if name != "self"}
    assert ControlNetConfig().to_dict() == theirs | {"_class_name": "SanaControlNetModel"}


@pytest.mark.parametrize("blocks", [0, 4, 9])
def test_a_wrong_number_of_blocks_is_refused(blocks: int) -> None:
    with pytest.raises(ConfigError, match=f"copies 1 to 3 blocks .* got {blocks}"):
        ControlNet.of(pair()[0], blocks)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    base, control = pair()
    write_controlnet(control, tmp_path)
    wider = replace(BASE, num_attention_heads=2, cross_attention_dim=32)
    with pytest.raises(ConfigError, match="num_attention_heads is 4, the transformer's 2"):
        load_controlnet(tmp_path, wider)
    with pytest.raises(ConfigError, match="a Sprint model takes no ControlNet"):
        load_controlnet(tmp_path, replace(BASE, guidance_embeds=True))
    with pytest.raises(ConfigError, match="copies 1 to 1 blocks"):
        load_controlnet(tmp_path, replace(BASE, num_layers=2))
    with pytest.raises(ConfigError, match="its qk_norm is None"):
        Controlled(Transformer(replace(BASE, qk_norm="rms_norm_across_heads")), control)
    assert load_controlnet(tmp_path, base.config).config.num_layers == 2


def test_a_folder_without_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="holds no ControlNet: name the folder"):
        load_controlnet(tmp_path / "none", BASE)
    (tmp_path / "config.json").write_text('{"_class_name": "SanaTransformer2DModel"}')
    with pytest.raises(WeightsError, match="expected a SanaControlNetModel"):
        load_controlnet(tmp_path, BASE)
