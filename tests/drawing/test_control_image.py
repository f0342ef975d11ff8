"""A whole tiny model with a ControlNet: drawing by a picture, records, and what is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from opensana.cli import main
from opensana.drawing.control_image import read_control_image
from opensana.drawing.inputs import Inputs, check_inputs
from opensana.drawing.picture import read_note
from opensana.drawing.solving import job_noises
from opensana.errors import ConfigError, RequestError, WeightsError
from opensana.models.save import write_controlnet
from opensana.pictures.pixels import to_pixels
from opensana.pipeline import Sana
from opensana.request import Request
from opensana.runtime.packed import PackedLinear, can_pack
from opensana.transformer.controlnet import Controlled, ControlNet, control_config
from tests import tiny

LEVELS = np.random.default_rng(6).integers(256, size=(64, 64, 3), dtype=np.uint8)
IMAGE = Image.fromarray(LEVELS)
REQUEST = Request("a cat", seed=3, steps=3, width=64, height=64)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def sana() -> Sana:
    plain = tiny.sana(instruction="none")
    control = ControlNet(control_config(plain.transformer.config, 1)).eval().requires_grad_(False)
    tiny.randomise(control, 7)
    return replace(plain, controlnet=control)


@pytest.fixture(scope="module")
def folders(sana: Sana, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    """A model, its ControlNet and a picture, as files."""
    root = tmp_path_factory.mktemp("control")
    sana.save(root / "model")
    assert sana.controlnet is not None
    write_controlnet(sana.controlnet, root / "net" / "controlnet")
    IMAGE.save(root / "edges.png")
    return str(root / "model"), str(root / "net"), str(root / "edges.png")


def latent_of(sana: Sana, request: Request = REQUEST, **options) -> torch.Tensor:
    latents: list[torch.Tensor] = []
    sana.generate(request, lambda step, total, latent: latents.append(latent), **options)
    return latents[-1]


@pytest.mark.parametrize("guidance", [1.0, 4.5])
@torch.inference_mode()
def test_what_is_drawn_is_the_controlled_velocity(sana: Sana, guidance: float) -> None:
    """One Euler step is one velocity, taken here from the networks themselves."""
    request = replace(REQUEST, steps=1, solver="euler", guidance=guidance)
    noise = next(job_noises(sana, sana.job(request, Inputs(control_image=IMAGE))))
    assert sana.controlnet is not None
    network, condition = Controlled(sana.transformer, sana.controlnet), to_pixels(IMAGE)
    condition = sana.autoencoder.encode(condition)
    states = sana.text.encode(["a cat"]), sana.text.encode_plain([""])
    ours = [network(noise, torch.tensor([1000.0]), s.states, s.mask, condition) for s in states]
    velocity = ours[1] + guidance * (ours[0] - ours[1])
    found = latent_of(sana, request, control_image=IMAGE)
    torch.testing.assert_close(found, noise - velocity, rtol=1e-4, atol=1e-4)


def test_the_scale_counts_and_0_is_none(sana: Sana) -> None:
    plain = latent_of(replace(sana, controlnet=None))
    off, half, on = (latent_of(sana, control_image=IMAGE, control_scale=s) for s in (0, 0.5, 1))
    torch.testing.assert_close(off, plain, rtol=0, atol=0)
    assert not torch.allclose(half, plain, atol=1e-3) and not torch.allclose(half, on, atol=1e-3)


def test_a_batch_is_its_single_pictures(sana: Sana) -> None:
    both = latent_of(sana, replace(REQUEST, images=2), control_image=IMAGE)
    second = latent_of(sana, replace(REQUEST, seed=4), control_image=IMAGE)
    torch.testing.assert_close(both[1:], second, rtol=1e-4, atol=1e-4)


def test_other_sizes_are_scaled_and_cut(sana: Sana) -> None:
    said: list[str] = []
    wide = Image.new("RGB", (192, 64), "red")
    wide.paste(IMAGE, (64, 0))
    found = latent_of(sana, control_image=wide, notice=said.append)
    assert said == ["the control image of 192 x 64 was scaled and cut to 64 x 64"]
    torch.testing.assert_close(found, latent_of(sana, control_image=IMAGE), rtol=0, atol=0)


def test_it_goes_with_a_picture_to_start_from(sana: Sana) -> None:
    given = {"image": IMAGE, "control_image": IMAGE}
    ours = latent_of(sana, replace(REQUEST, strength=0.5), **given)
    plain = latent_of(replace(sana, controlnet=None), replace(REQUEST, strength=0.5), image=IMAGE)
    assert ours.shape == plain.shape and not torch.allclose(ours, plain, atol=1e-3)


def test_a_loaded_one_draws_the_same_by_packed_layers(
    sana: Sana, folders: tuple[str, str, str]
) -> None:
    model, net, picture = folders
    loaded = Sana.load(model, device="cpu", controlnet=net)
    control = loaded.controlnet
    assert control is not None
    if can_pack(torch.device("cpu"), torch.float32):
        assert isinstance(control.input_block, PackedLinear)
    request = replace(REQUEST, guidance=4.5)
    expected = latent_of(sana, request, control_image=IMAGE)
    found = latent_of(loaded, request, control_image=picture)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_what_is_missing_or_wrong_is_said(sana: Sana, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="a ControlNet needs a picture to follow"):
        sana.generate(REQUEST)
    with pytest.raises(RequestError, match="a ControlNet needs a picture to follow"):
        sana.draw_latents(REQUEST)
    with pytest.raises(RequestError, match="without a ControlNet"):
        replace(sana, controlnet=None).generate(REQUEST, control_image=IMAGE)
    (tmp_path / "x.png").write_bytes(b"no picture")
    with pytest.raises(RequestError, match=r"control image '.*x\.png' is no PNG, JPEG or WebP"):
        sana.generate(REQUEST, control_image=tmp_path / "x.png")
    for scale in (-1, 11, float("nan"), "much", True):
        with pytest.raises(RequestError, match="control_scale must be"):
            sana.generate(REQUEST, control_image=IMAGE, control_scale=scale)  # pyright: ignore


def test_loading_another_kind_is_refused(folders: tuple[str, str, str], tmp_path: Path) -> None:
    model, *_ = folders
    with pytest.raises(WeightsError, match="holds no ControlNet"):
        Sana.load(model, device="cpu", controlnet=model)
    wide = replace(tiny.TRANSFORMER, num_attention_heads=4, cross_attention_dim=32)
    write_controlnet(ControlNet(control_config(wide, 1)), tmp_path)
    with pytest.raises(ConfigError, match="num_attention_heads is 4, the transformer's 2"):
        Sana.load(model, device="cpu", controlnet=tmp_path)


def test_the_command_draws_records_and_draws_again(
    folders: tuple[str, str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, net, picture = folders
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    drawing = ["generate", "a cat", "--model", model, "--seed", "3", "--steps", "2"]
    control = ["--controlnet", net, "--control-image", picture]
    assert main([*drawing, *control, "--control-scale", "0.5", "--output", str(first)]) == 0
    note = read_note(first)
    assert note["control_scale"] == 0.5 and len(note["control_image_sha256"]) == 64
    again = ["generate", "--from-png", str(first), "--output", str(second)]
    assert main([*again, *control, "--control-scale", "0.5"]) == 0
    with Image.open(first) as one, Image.open(second) as other:
        assert np.array_equal(np.asarray(one), np.asarray(other))
    capsys.readouterr()
    for flags, problem in (
        (again, "was drawn with --control-image; give it again"),
        ([*drawing, "--controlnet", net], "a ControlNet needs a picture to follow"),
        ([*drawing, "--control-image", picture], "without a ControlNet"),
        ([*again, "--controlnet", net, "--control-image", str(first)], "not the --control-image"),
    ):
        assert main(flags) != 0
        assert problem in capsys.readouterr().err


def test_the_scale_is_recorded_and_never_without_effect(
    folders: tuple[str, str, str], tmp_path: Path
) -> None:
    model, net, picture = folders
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    control = ["--controlnet", net, "--control-image", picture]
    drawing = ["generate", "a cat", "--model", model, "--seed", "3", "--steps", "2", *control]
    assert main([*drawing, "--control-scale", "0.5", "--output", str(first)]) == 0
    assert main(["generate", "--from-png", str(first), *control, "--output", str(second)]) == 0
    assert first.read_bytes() == second.read_bytes()
    with pytest.raises(RequestError, match=r"control_scale 0\.5 was given without a control image"):
        check_inputs(Inputs(control_scale=0.5), REQUEST, controlnet=False)


def test_a_sketch_that_white_swallows_is_refused() -> None:
    """Lines on a transparent layer, as painting programs save them, would be a blank picture."""
    lines = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    lines.paste((255, 255, 255, 255), (10, 10, 50, 14))
    for sketch in (lines, lines.convert("LA")):
        with pytest.raises(RequestError, match="the control image is white on a transparent"):
            read_control_image(sketch, 1.0)
    for blank in (Image.new("RGBA", (64, 64)), Image.new("RGB", (64, 64), "white")):
        assert read_control_image(blank, 1.0)
    black = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    black.paste((0, 0, 0, 255), (10, 10, 50, 14))
    assert read_control_image(black, 1.0)
