"""Image-to-image and inpainting by a whole tiny model: strength, kept pixels, seeds, records.

Also tests `pictures/pixels.py`.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from opensana.drawing.picture import Picture, read_note, read_request
from opensana.errors import RequestError
from opensana.pictures.pixels import to_pixels
from opensana.pipeline import Sana
from opensana.request import Request
from tests import tiny

SOLVERS = ("flow_dpm", "euler")
LEVELS = np.random.default_rng(6).integers(256, size=(64, 96, 3), dtype=np.uint8)
IMAGE = Image.fromarray(LEVELS)
MASK = Image.new("L", IMAGE.size, 0)
MASK.paste(255, (40, 10, 60, 30))
REQUEST = Request("a cat", seed=3, steps=10)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def sana() -> Sana:
    return tiny.sana(instruction="none")


def latent_of(sana: Sana, request: Request, **options) -> Tensor:
    """The last latent before decoding: random autoencoders do not give pictures back."""
    latents: list[Tensor] = []
    sana.generate(request, lambda step, total, latent: latents.append(latent), **options)
    return latents[-1]


def encoded(sana: Sana) -> Tensor:
    return sana.autoencoder.encode(to_pixels(IMAGE))


def same(one: Picture, other: Picture) -> bool:
    return np.array_equal(np.asarray(one.image), np.asarray(other.image))


@pytest.mark.parametrize("solver", SOLVERS)
def test_full_strength_is_plain_drawing(sana: Sana, solver: str) -> None:
    request = replace(REQUEST, solver=solver, width=96, height=64)
    [plain] = sana.generate(request)
    [edited] = sana.generate(request, image=IMAGE, strength=1.0)
    assert same(edited, plain)
    [half] = sana.generate(request, image=IMAGE, strength=0.5)
    assert not same(half, plain)


@pytest.mark.parametrize("solver", SOLVERS)
def test_psnr_rises_as_strength_falls(sana: Sana, solver: str) -> None:
    x0 = encoded(sana)
    errors = [
        (latent_of(sana, replace(REQUEST, solver=solver, strength=s), image=IMAGE) - x0)
        .square()
        .mean()
        .item()
        for s in (0.1, 0.4, 0.7, 1.0)
    ]
    assert errors == sorted(errors)
    assert errors[0] < errors[-1] / 4


def test_the_steps_that_run_are_counted(sana: Sana) -> None:
    seen: list[tuple[int, int]] = []
    sana.generate(
        replace(REQUEST, images=5),
        lambda step, total, _: seen.append((step, total)),
        image=IMAGE,
        strength=0.3,
    )
    assert seen == [(index, 6) for index in range(6)]


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("strength", [None, 0.5])
def test_every_bit_outside_the_mask_stays(sana: Sana, solver: str, strength: float | None) -> None:
    request = replace(REQUEST, solver=solver, strength=strength, images=2)
    for picture in sana.generate(request, image=IMAGE, mask=MASK):
        drawn, white = np.asarray(picture.image), np.asarray(MASK) > 0
        assert np.array_equal(drawn[~white], LEVELS[~white])
        assert (drawn[white] != LEVELS[white]).mean() > 0.5


@pytest.mark.parametrize("solver", SOLVERS)
def test_kept_cells_of_the_latent_are_the_pictures(sana: Sana, solver: str) -> None:
    request = replace(REQUEST, solver=solver, strength=0.7)
    latent, x0 = latent_of(sana, request, image=IMAGE, mask=MASK), encoded(sana)
    kept = torch.tensor([[True, False, True], [True, True, True]])  # the mask lies in one cell
    assert torch.allclose(latent[..., kept], x0[..., kept], atol=1e-4)
    assert (latent[..., ~kept] - x0[..., ~kept]).abs().mean() > 0.1


def test_a_seed_belongs_to_a_picture(sana: Sana) -> None:
    batch = sana.generate(REQUEST, images=5, image=IMAGE, mask=MASK, strength=0.6)
    for index in (1, 4):
        [alone] = sana.generate(batch[index].request, image=IMAGE, mask=MASK)
        difference = np.asarray(alone.image, int) - np.asarray(batch[index].image, int)
        assert np.abs(difference).max() <= 1
    assert not same(batch[0], batch[1])


def test_paths_bytes_and_images_are_the_same(sana: Sana, tmp_path: Path) -> None:
    IMAGE.save(tmp_path / "image.png")
    MASK.save(tmp_path / "mask.png")
    [one] = sana.generate(REQUEST, image=tmp_path / "image.png", mask=str(tmp_path / "mask.png"))
    [two] = sana.generate(REQUEST, image=(tmp_path / "image.png").read_bytes(), mask=MASK)
    assert same(one, two)


def test_the_size_is_the_pictures_and_a_change_is_told(sana: Sana) -> None:
    heard: list[str] = []
    odd = IMAGE.resize((90, 70))
    [picture] = sana.generate(REQUEST, image=odd, notice=heard.append)
    assert picture.image.size == (picture.request.width, picture.request.height) == (96, 64)
    assert heard == ["the image of 90 x 70 pixels was scaled and cut to 96 x 64"]
    [square] = sana.generate(REQUEST, image=IMAGE, width=64, height=64, notice=heard.append)
    assert square.image.size == (64, 64)
    sana.generate(REQUEST, image=IMAGE, width=192, steps=1, notice=heard.append)
    assert "192 x 128 pixels are far more than the 64 x 64" in heard[-1]
    with pytest.warns(UserWarning, match="scaled and cut to 96 x 64"):
        sana.generate(REQUEST, image=odd, steps=1)


def test_the_unit_is_the_models(sana: Sana) -> None:
    coarse = tiny.transformer(replace(tiny.TRANSFORMER, patch_size=2))
    [picture] = replace(sana, transformer=coarse).generate(
        REQUEST, image=IMAGE, notice=lambda _: None
    )
    assert picture.image.size == (128, 64)


def test_a_png_records_what_it_was_drawn_from(sana: Sana, tmp_path: Path) -> None:
    odd, mask = IMAGE.resize((90, 70)), MASK.resize((90, 70))
    [picture] = sana.generate("a cat", steps=2, image=odd, mask=mask, notice=lambda _: None)
    path = picture.save(tmp_path / "edit.png")
    note, request = read_note(path), read_request(path)
    assert request == picture.request
    assert (request.strength, request.width, request.height) == (1.0, 96, 64)
    assert len(note["image_sha256"]) == len(note["mask_sha256"]) == 64
    assert "Denoising strength: 1.0" in picture.metadata["parameters"]
    [again] = sana.generate(request, image=odd, mask=mask, notice=lambda _: None)
    assert again.png() == path.read_bytes()
    [plain] = sana.generate("a cat", steps=1)
    assert not {"image_sha256", "mask_sha256"} & set(json.loads(plain.metadata["opensana"]))
    assert "Denoising" not in plain.metadata["parameters"]


def test_an_edit_without_a_picture_is_refused(sana: Sana) -> None:
    with pytest.raises(RequestError, match="strength was given without a picture"):
        sana.generate("a cat", strength=0.5)
    with pytest.raises(RequestError, match="mask was given without a picture"):
        sana.generate("a cat", mask=MASK)
