"""Training a small CLIP: it learns, resumes, and never contrasts what belongs together.

Also tests `train/clip/task.py`.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from opensana.config import build
from opensana.datasets.emoji.dataset import VERSION
from opensana.errors import ConfigError, DataError
from opensana.features.texts import TEXT_KEYS, write_text
from opensana.metrics.small_clip import load_clip
from opensana.train import load_recipe, run
from opensana.train.clip.task import ClipTask, belonging, on_white, train_clip, varied
from opensana.train.dry_run import dry_run
from opensana.train.recipe import ClipDataRecipe, ClipRecipe
from tests.train.conftest import COMMON

COUNT = 12


def record(index: int) -> dict[str, Any]:
    captions = [
        {"source": source, "text": f"{source} {index}", "held_out": source == "github"}
        for source in ("label", "tags", "github")
    ]
    nothing = {
        "tags": [],
        "keywords": [],
        "shortcodes": {},
        "group": "g",
        "subgroup": "s",
        "split": "train",
    }
    return {"index": index, "hexcode": f"1F{index}", "label": f"label {index}", **nothing} | {
        "family": str(index),
        "captions": captions,
        "vocabulary": index % 2 == 0,
    }


@pytest.fixture(scope="module")
def emoji(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve emoji of one colour each, with captions whose states tell which they mean."""
    folder = tmp_path_factory.mktemp("emoji")
    draw = np.random.default_rng(0)
    pictures = np.full((COUNT, 32, 32, 4), 255, np.uint8)
    pictures[..., :3] = draw.integers(0, 256, (COUNT, 1, 1, 3))
    np.save(folder / "pictures.npy", pictures)
    lines = "".join(json.dumps(record(index)) + "\n" for index in range(COUNT))
    (folder / "records.jsonl").write_text(lines)
    (folder / "manifest.json").write_text(json.dumps({"version": VERSION}))
    texts, states = [], []
    for index in range(COUNT):
        meaning = draw.standard_normal(16)
        for source in ("label", "tags", "github"):
            texts.append(f"{source} {index}")
            states.append((meaning + 0.1 * draw.standard_normal((3, 16))).astype(np.float32))
    keys: dict[str, str] = dict.fromkeys(TEXT_KEYS, "x")
    with write_text(folder / "text", keys=keys, null=np.zeros((1, 16), np.float32)) as writer:
        writer.add(texts, states)
    return folder


@pytest.fixture
def clip_recipe(emoji: Path, tmp_path: Path) -> Callable[..., ClipRecipe]:
    def make(**changes: Any) -> ClipRecipe:
        values = {
            "kind": "clip",
            "name": "tiny",
            "run": str(tmp_path / "run"),
            "steps": 60,
            "batch": 8,
            "model": {
                "size": 8,
                "widths": [8, 16],
                "text_channels": 16,
                "text_width": 16,
                "dim": 8,
            },
            "data": {"folder": str(emoji), "text": str(emoji / "text"), "white": 1.0},
            **COMMON,
            "optimizer": {"lr": 1e-2},
            **changes,
        }
        return build(ClipRecipe, values, where="test")

    return make


def test_held_out_captions_find_their_pictures(
    clip_recipe: Callable[..., ClipRecipe], write_recipe: Callable[[Any], Path]
) -> None:
    recipe = clip_recipe()
    path = write_recipe(recipe)
    assert load_recipe(path) == recipe
    before = ClipTask(recipe).evaluate()
    run(path)
    lines = (Path(recipe.run) / "metrics.jsonl").read_text().splitlines()
    after = [json.loads(line) for line in lines][-1]
    assert before["all_top1"] < 0.5 < 0.9 < after["all_top1"] <= after["all_top5"]
    assert set(after) >= {"vocabulary_top1", "vocabulary_top5"}
    task, clip = ClipTask(recipe), load_clip(Path(recipe.run) / "export")
    embedded = clip.embed_images(on_white(task.pictures))
    texts = clip.embed_texts(*task.texts.batch([known[0] for known in task.ids]))
    right = (embedded @ texts.T).argmax(1) == torch.arange(COUNT)
    assert right.float().mean() > 0.9


def test_a_stopped_run_ends_with_the_same_bits(
    clip_recipe: Callable[..., ClipRecipe], tmp_path: Path
) -> None:
    whole = clip_recipe(steps=8, run=str(tmp_path / "whole"))
    train_clip(whole)
    train_clip(clip_recipe(steps=5))
    train_clip(clip_recipe(steps=8))
    files = [tmp_path / name / "export" / "diffusion_pytorch_model.safetensors"
             for name in ("whole", "run")]  # fmt: skip
    assert files[0].read_bytes() == files[1].read_bytes()


def test_what_belongs_together_is_positive() -> None:
    rows, ids = [4, 7, 4], [[0, 1], [2, 9], [0, 1]]
    positive = belonging(rows, [0, 2, 1, 1, 9, 0], ids)
    same = [1, 0, 1, 1, 0, 1]
    assert positive.int().tolist() == [same, [0, 1, 0, 0, 1, 0], same]
    shared = belonging([1, 2], [5, 6], [[5], [6, 5]])
    assert shared.int().tolist() == [[1, 0], [1, 1]], "one caption, two pictures"


def test_varied_pictures_stay_pictures() -> None:
    pictures = torch.zeros(64, 4, 8, 8, dtype=torch.uint8)
    pictures[:, 3, 2:6, 2:6] = 255  # a black square on nothing
    data = ClipDataRecipe("", "", white=0.5)
    pixels = varied(pictures, data, torch.Generator().manual_seed(0))
    assert pixels.min() >= -1
    assert pixels.max() <= 1
    corners = pixels[:, :, 0, 0]
    white = (corners == 1).all(1).float().mean()
    assert 0.3 < white < 0.7
    torch.testing.assert_close(pixels[:, :, 4, 4], torch.full((64, 3), -1.0))
    still = varied(pictures, ClipDataRecipe("", "", white=1.0, zoom=0, shift=0), torch.Generator())
    torch.testing.assert_close(still, on_white(pictures))


def test_missing_captions_and_wrong_recipes_are_named(
    clip_recipe: Callable[..., ClipRecipe], write_recipe: Callable[[Any], Path], tmp_path: Path
) -> None:
    keys: dict[str, str] = dict.fromkeys(TEXT_KEYS, "x")
    with write_text(tmp_path / "text", keys=keys, null=np.zeros((1, 16), np.float32)) as writer:
        writer.add(["label 0"], [np.zeros((1, 16), np.float32)])
    recipe = clip_recipe()
    data = {"folder": recipe.data.folder, "text": str(tmp_path / "text")}
    with pytest.raises(DataError, match=r"lacks 35 captions, such as 'tags 0'.*caption\.py"):
        ClipTask(clip_recipe(data=data))
    with pytest.raises(ConfigError, match="text_channels"):
        ClipTask(clip_recipe(model={"text_channels": 7, "size": 8, "widths": [8]}))
    with pytest.raises(ConfigError, match="accumulate"):
        clip_recipe(accumulate=2)
    with pytest.raises(ConfigError, match="unknown key 'initial'; leave it out: a CLIP starts"):
        clip_recipe(initial="somewhere")
    with pytest.raises(ConfigError, match="no dry run"):
        dry_run(write_recipe(recipe))
