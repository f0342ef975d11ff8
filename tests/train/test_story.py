"""Eight pictures learnt by heart: given back by an autoencoder, drawn back by a transformer."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from opensana.datasets.crops import PictureSource, stacked
from opensana.features.latents import Sample, write_features
from opensana.features.texts import TEXT_KEYS, write_text
from opensana.models.load import load_autoencoder
from opensana.pictures.pixels import from_levels
from opensana.train.autoencoder.task import train_autoencoder
from opensana.train.transformer.task import train_transformer
from tests.train.conftest import AUTOENCODER, TRANSFORMER
from tests.train.reading import lines

SIZE = 32
WIDER = {
    "latent_channels": 16,
    "encoder_block_out_channels": [32, 32, 64],
    "decoder_block_out_channels": [32, 32, 64],
}
STATES = 12
STEPS = 700
EVERY_PICTURE = {"pictures": 8, "batch": 8}


@pytest.fixture
def by_heart(autoencoder_recipe, pictures: Path, tmp_path: Path) -> Path:
    """An autoencoder after 140 steps on the eight pictures: its run folder."""
    run = tmp_path / "autoencoder"
    train_autoencoder(
        autoencoder_recipe(
            run=str(run),
            model={**AUTOENCODER, **WIDER},
            steps=140,
            batch=8,
            ema=0.98,
            channels_last=True,
            data={"folder": str(pictures), "crop": SIZE, "white": 1.0},
            optimizer={"lr": 4e-3, "betas": [0.9, 0.95]},
            schedule={"warmup": 10, "decay": "cosine"},
            evaluate={"every": 140, **EVERY_PICTURE},
            checkpoint={"every": 140, "keep": 1},
        )
    )
    return run


def originals(pictures: Path) -> np.ndarray:
    """uint8 [8, 3, 32, 32] on white."""
    source = PictureSource.open(pictures)
    return stacked([source.square(index, SIZE) for index in range(len(source))])


def encoded(pictures: Path, autoencoder: Path, folder: Path) -> Path:
    """The features of the eight pictures, each with a caption of random states."""
    draw = np.random.default_rng(5)
    states = [draw.standard_normal((3, STATES)).astype(np.float32) for _ in range(8)]
    null = draw.standard_normal((3, STATES)).astype(np.float32)
    with write_text(folder / "text", keys=dict.fromkeys(TEXT_KEYS, "x"), null=null) as text:
        text.add([f"picture {i}" for i in range(8)], states)
    with torch.no_grad():
        latents = load_autoencoder(autoencoder).encode(from_levels(originals(pictures)))
    with write_features(folder / "all", keys={}, text=folder / "text") as cache:
        cache.add(latents, [Sample(str(i), (i,), (1.0,)) for i in range(8)])
    return folder / "all"


def reported(run: Path, name: str) -> list[float]:
    return [line[name] for line in lines(run) if name in line]


def test_eight_pictures_are_given_back(by_heart: Path) -> None:
    before, after = reported(by_heart, "psnr_train")
    assert before < 15
    assert after >= 30


@pytest.mark.slow
def test_eight_pictures_are_drawn_back(
    by_heart: Path, transformer_recipe, pictures: Path, tmp_path: Path
) -> None:
    run = tmp_path / "transformer"
    prompts = [f"picture {i}" for i in (3, 0, 7, 1, 4, 2, 6, 5)]
    train_transformer(
        transformer_recipe(
            run=str(run),
            model={
                **TRANSFORMER,
                "in_channels": 16,
                "out_channels": 16,
                "num_attention_heads": 4,
                "attention_head_dim": 16,
                "num_cross_attention_heads": 4,
                "cross_attention_head_dim": 16,
                "cross_attention_dim": 64,
                "caption_channels": STATES,
                "sample_size": 8,
                "interpolation_scale": 1.0,
            },
            steps=STEPS,
            batch=8,
            ema=0.98,
            caption_norm=1.0,
            data={"folder": str(encoded(pictures, by_heart / "export", tmp_path)), "repeat": 2},
            optimizer={"lr": 4e-3, "betas": [0.9, 0.95]},
            schedule={"warmup": 20, "decay": "cosine"},
            evaluate={"every": STEPS, **EVERY_PICTURE},
            checkpoint={"every": STEPS, "keep": 1},
            samples={
                "every": STEPS,
                "autoencoder": str(by_heart / "export"),
                "prompts": prompts,
                "steps": 20,
                "guidance": 1.0,
            },
        )
    )
    losses = reported(run, "fixed_loss")
    assert losses[-1] < 0.05 * losses[0]
    with Image.open(run / "samples" / f"step-{STEPS:08d}.png") as sheet:
        drawn = np.asarray(sheet).reshape(SIZE, 8, SIZE, 3).transpose(1, 3, 0, 2)
    errors = (drawn[:, None].astype(float) - originals(pictures)[None]) ** 2
    distances = errors.mean((2, 3, 4))
    nearest = [f"picture {index}" for index in distances.argmin(1)]
    assert nearest == prompts
