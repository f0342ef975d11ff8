"""Resolution bins against those of diffusers, and pictures drawn with them.

Also tests `pictures/resize.py`.
"""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.image_processor import PixArtImageProcessor
from diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha import (
    ASPECT_RATIO_512_BIN,
    ASPECT_RATIO_1024_BIN,
)
from diffusers.pipelines.pixart_alpha.pipeline_pixart_sigma import ASPECT_RATIO_2048_BIN
from diffusers.pipelines.sana.pipeline_sana import ASPECT_RATIO_4096_BIN

from opensana.drawing.solving import job_noises
from opensana.errors import RequestError
from opensana.models.resolution_bins import bins, nearest_bin
from opensana.pictures.input import ImageSource
from opensana.pictures.resize import cover
from opensana.pipeline import Sana
from opensana.request import Request
from opensana.weights.published_models import MODELS
from tests import tiny

TABLES: dict[int, dict[str, list[float]]] = {
    512: ASPECT_RATIO_512_BIN,
    1024: ASPECT_RATIO_1024_BIN,
    2048: ASPECT_RATIO_2048_BIN,
    4096: ASPECT_RATIO_4096_BIN,
}


@pytest.mark.parametrize("native", TABLES)
def test_the_tables_are_those_of_diffusers(native: int) -> None:
    theirs = {float(ratio): (int(w), int(h)) for ratio, (h, w) in TABLES[native].items()}
    assert bins(native) == theirs
    assert list(bins(native)) == list(theirs)  # the first of two equally near ones is taken


@pytest.mark.parametrize("native", TABLES)
def test_every_shape_meets_the_same_bin(native: int) -> None:
    generator = np.random.default_rng(0)
    for width, height in generator.integers(32, 8192, (300, 2)).tolist():
        theirs = PixArtImageProcessor.classify_height_width_bin(height, width, TABLES[native])
        assert nearest_bin(width, height, native=native) == theirs[::-1]


def test_bins_fit_the_autoencoder() -> None:
    for native in TABLES:
        assert not [size for size in bins(native).values() if size[0] % 32 or size[1] % 32]


def test_every_published_model_has_bins() -> None:
    for name, known in MODELS.items():
        assert (1.0, (known.native_size,) * 2) in bins(known.native_size).items(), name


@pytest.mark.parametrize("size", [(64, 96), (96, 64), (100, 33), (64, 64), (31, 200)])
def test_scaling_and_cutting_is_that_of_diffusers(size: tuple[int, int]) -> None:
    pixels = torch.rand(2, 3, 64, 96)
    theirs = PixArtImageProcessor.resize_and_crop_tensor(pixels, *size)
    assert torch.equal(cover(pixels, *size), theirs)


def test_what_is_covered_is_never_a_pixel_short() -> None:
    for width in range(32, 400, 7):
        for height in (33, 171, 250):
            assert cover(torch.rand(1, 3, 86, 131), width, height).shape[-2:] == (height, width)


# ------------------------------------------------------------------ drawing with them


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def sana() -> Sana:
    """A tiny model for 512 pixels."""
    network = tiny.transformer(replace(tiny.TRANSFORMER, sample_size=16))
    return replace(tiny.sana(instruction="none"), transformer=network)


REQUEST = Request("a cat", width=400, height=250, steps=2, guidance=4.5, seed=3, binned=True)


def test_a_binned_picture_is_that_of_diffusers(sana: Sana, tmp_path: Path) -> None:
    from diffusers import SanaPipeline  # pyright: ignore[reportPrivateImportUsage]

    pipeline: Any = SanaPipeline.from_pretrained(sana.save(tmp_path / "tiny"), dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    noise = next(job_noises(sana, sana.job(REQUEST)))
    assert noise.shape[-2:] == (384 // 32, 640 // 32)  # of ratio 0.6, for 0.625
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # diffusers' own, of numpy 2
        [theirs] = pipeline(
            REQUEST.prompt,
            width=REQUEST.width,
            height=REQUEST.height,
            num_inference_steps=REQUEST.steps,
            guidance_scale=REQUEST.guidance,
            latents=noise,
            complex_human_instruction=None,
            use_resolution_binning=True,
        ).images
    [ours] = sana.generate(REQUEST)
    assert ours.image.size == theirs.size == (400, 250)
    assert ours.request == replace(REQUEST, solver="flow_dpm")
    difference = np.asarray(ours.image, int) - np.asarray(theirs, int)
    assert np.abs(difference).max() <= 1
    assert np.asarray(theirs).std() > 2


def test_bands_give_the_binned_picture_too(sana: Sana) -> None:
    heard: list[str] = []
    [whole] = sana.generate(REQUEST)
    [banded] = replace(sana, memory=1_500_000).generate(REQUEST, notice=heard.append)
    assert "in bands" in heard[0]
    difference = np.asarray(whole.image, int) - np.asarray(banded.image, int)
    assert np.abs(difference).max() <= 1


def test_only_published_sizes_have_bins() -> None:
    with pytest.raises(RequestError, match="512, 1024, 2048, 4096 pixels, this one draws 64"):
        tiny.sana(instruction="none").generate(REQUEST)


def test_a_picture_to_start_from_keeps_its_size(sana: Sana) -> None:
    [drawn] = sana.generate(replace(REQUEST, steps=1))
    source: ImageSource = drawn.image
    with pytest.raises(RequestError, match="leave binned out"):
        sana.generate("a cat", image=source, binned=True)


def test_a_binned_size_may_be_any() -> None:
    assert Request("x", width=333, height=77, binned=True).width == 333
    for wrong in ({"width": 333}, {"width": 9000, "binned": True}, {"height": 8, "binned": True}):
        with pytest.raises(RequestError):
            Request("x", **wrong)  # pyright: ignore[reportArgumentType]
