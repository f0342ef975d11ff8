"""Tiny data and recipes: a training step takes milliseconds."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from opensana.config import build, to_toml
from opensana.features.latents import Sample, write_features
from opensana.features.texts import TEXT_KEYS, write_text
from opensana.train.recipe import KINDS, AutoencoderRecipe, TransformerRecipe

AUTOENCODER = {
    "latent_channels": 4,
    "attention_head_dim": 8,
    "encoder_block_types": ["ResBlock", "ResBlock", "EfficientViTBlock"],
    "decoder_block_types": ["ResBlock", "ResBlock", "EfficientViTBlock"],
    "encoder_block_out_channels": [8, 8, 16],
    "decoder_block_out_channels": [8, 8, 16],
    "encoder_layers_per_block": [0, 1, 1],
    "decoder_layers_per_block": [0, 1, 1],
    "encoder_qkv_multiscales": [[], [], []],
    "decoder_qkv_multiscales": [[], [], []],
    "decoder_norm_types": "rms_norm",
    "decoder_act_fns": "silu",
}
TRANSFORMER = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "num_layers": 2,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 8,
    "cross_attention_dim": 16,
    "caption_channels": 12,
    "sample_size": 2,
}
COMMON = {
    "seed": 5,
    "threads": 1,
    "tensorboard": False,
    "ema": 0.9,
    "checkpoint": {"every": 5, "keep": 3},
    "evaluate": {"every": 10, "pictures": 4, "batch": 4},
    "optimizer": {"lr": 3e-3},
}
BY_WEIGHT = {"sampling": "power", "temperature": 1.0, "threshold": 0.0}
Make = Callable[..., Any]


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny layers gain nothing from more, and other work on the machine disturbs them less."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder: ten smooth RGBA pictures of 32 x 32, the last two held out."""
    folder = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(1)
    coarse = draw.integers(0, 256, (10, 4, 4, 4))
    pixels = coarse.repeat(8, axis=1).repeat(8, axis=2).astype(np.uint8)
    np.save(folder / "pictures.npy", pixels)
    splits = ["train"] * 8 + ["held_out"] * 2
    lines = (json.dumps({"hexcode": f"P{i}", "split": split}) for i, split in enumerate(splits))
    (folder / "records.jsonl").write_text("".join(line + "\n" for line in lines))
    return folder


@pytest.fixture(scope="session")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight latents [4, 2, 2], each with two captions of its own, three to one by weight."""
    root, draw = tmp_path_factory.mktemp("features"), np.random.default_rng(2)
    null = draw.standard_normal((2, 12)).astype(np.float32)
    states = [draw.standard_normal((2 + i % 3, 12)).astype(np.float32) for i in range(16)]
    with write_text(root / "text", keys=dict.fromkeys(TEXT_KEYS, "x"), null=null) as text:
        text.add([f"caption {i}" for i in range(16)], states)
    latents = torch.randn(8, 4, 2, 2, generator=torch.Generator().manual_seed(3))
    with write_features(root / "all", keys={}, text=root / "text") as cache:
        cache.add(latents, [Sample(str(i), (2 * i, 2 * i + 1), (3.0, 1.0)) for i in range(8)])
    return root / "all"


@pytest.fixture
def autoencoder_recipe(pictures: Path, tmp_path: Path) -> Make:
    """A recipe for a tiny autoencoder; keyword arguments replace top-level keys."""

    def make(**changes: Any) -> AutoencoderRecipe:
        values = {
            "kind": "autoencoder",
            "name": "tiny",
            "run": str(tmp_path / "run"),
            "steps": 10,
            "batch": 4,
            "model": AUTOENCODER,
            "data": {"folder": str(pictures), "crop": 16},
            "samples": {"every": 10, "pictures": 2},
            **COMMON,
            **changes,
        }
        values["evaluate"] = {**values["evaluate"], "size": 32}
        return build(AutoencoderRecipe, values, where="test")

    return make


@pytest.fixture
def transformer_recipe(features: Path, tmp_path: Path) -> Make:
    """A recipe for a tiny transformer; keyword arguments replace top-level keys."""

    def make(**changes: Any) -> TransformerRecipe:
        values = {
            "kind": "transformer",
            "name": "tiny",
            "run": str(tmp_path / "run"),
            "steps": 10,
            "batch": 4,
            "model": TRANSFORMER,
            "data": {"folder": str(features), **BY_WEIGHT},
            "samples": {"every": 10},
            **COMMON,
            **changes,
        }
        return build(TransformerRecipe, values, where="test")

    return make


@pytest.fixture
def write_recipe(tmp_path: Path) -> Callable[[Any], Path]:
    def write(recipe: Any) -> Path:
        assert recipe.kind in KINDS
        path = tmp_path / "recipe.toml"
        path.write_text(to_toml(recipe))
        return path

    return write
