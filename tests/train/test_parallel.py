"""Several processes, started by torchrun on gloo: they train, save and stop as one.

Also tests `train/engine/parallel.py` and `train/engine/shards.py`.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from opensana.errors import ConfigError
from opensana.train.autoencoder.task import train_autoencoder
from opensana.train.checkpoints import checkpoint
from opensana.train.engine.parallel import Processes, blocks
from opensana.train.transformer.task import train_transformer
from opensana.transformer.model import Transformer, TransformerConfig
from tests.train.conftest import TRANSFORMER

SECONDS = 120


def start(recipe: Path, processes: int, *changes: str, **options) -> subprocess.Popen[str]:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    overrides = [word for change in changes for word in ("--set", change)]
    command = [sys.executable, *torchrun, "-m", "opensana.train", str(recipe), *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, **options)


def run(recipe: Path, processes: int, *changes: str) -> str:
    process = start(recipe, processes, *changes)
    _, said = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, said
    return said


def losses(folder: Path) -> list[float]:
    lines = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def same(folder: Path, other: Path, *, steps: int) -> None:
    ours, theirs = losses(folder), losses(other)
    assert len(ours) == len(theirs) == steps
    assert ours == pytest.approx(theirs, rel=1e-5)


def wait_for_lines(folder: Path, count: int, process: subprocess.Popen[str]) -> None:
    deadline, path = time.monotonic() + SECONDS, folder / "metrics.jsonl"
    while process.poll() is None and not (path.exists() and path.read_bytes().count(b"\n") > count):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def workers(torchrun: int) -> list[int]:
    """The processes that torchrun has started, by rank."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
            environment = (status.parent / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        ranks = [int(word[5:]) for word in environment if word.startswith(b"RANK=")]
        if int(fields[1]) == torchrun and ranks:
            found.append((ranks[0], int(status.parent.name)))
    return [number for _, number in sorted(found)]


SHORT = {"batch": 8, "steps": 10, "optimizer": {"name": "came", "lr": 1e-3}}
LONG = {"batch": 8, "steps": 50, "optimizer": {"lr": 1e-3}, "checkpoint": {"every": 25, "keep": 3}}
ENDLESS = {"batch": 8, "steps": 1_000_000, "checkpoint": {"every": 10, "keep": 2}}


def test_two_sharded_processes_train_as_one_and_one_goes_on(
    transformer_recipe, write_recipe, tmp_path: Path
):
    """FSDP, CAME, accumulation, recomputed blocks, saved in the background; resumed without."""
    alone, spread = tmp_path / "alone", tmp_path / "spread"
    train_transformer(transformer_recipe(run=str(alone), **SHORT))
    recipe = transformer_recipe(run=str(spread), **SHORT)
    changes = ("parallel.mode=fsdp", "accumulate=2", "steps=5", "checkpoint.asynchronous=true")
    run(write_recipe(recipe), 2, *changes, "parallel.checkpoint_activations=true")
    names = {path.name for path in (spread / "checkpoints/step-00000005").iterdir()}
    assert {f"optimizer-0000{part}-of-00002.safetensors" for part in (1, 2)} < names
    train_transformer(recipe)
    same(alone, spread, steps=10)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "came"])
@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_any_number_of_processes_trains_as_one(
    transformer_recipe, write_recipe, tmp_path: Path, mode: str, optimizer: str
):
    """Fifty steps; saved by two at the 25th, gone on by one, two and four."""
    # CAME divides by small differences, which magnifies rounding: it needs the smaller rate.
    options = {
        **LONG,
        "optimizer": {"name": optimizer, "lr": {"adamw": 1e-3, "came": 1e-4}[optimizer]},
    }
    alone, two = tmp_path / "alone", tmp_path / "two"
    train_transformer(transformer_recipe(run=str(alone), **options))
    recipe = write_recipe(transformer_recipe(run=str(two), **options))
    run(recipe, 2, f"parallel.mode={mode}", "steps=25")
    for processes in (1, 4):
        copy = tmp_path / f"then {processes}"
        shutil.copytree(two, copy)
        run(recipe, processes, f"parallel.mode={mode}", f"run={copy}")
        same(alone, copy, steps=50)
    run(recipe, 2, f"parallel.mode={mode}")
    same(alone, two, steps=50)


@pytest.mark.slow
def test_an_autoencoder_trains_in_two_processes_as_in_one(
    autoencoder_recipe, write_recipe, tmp_path: Path
):
    alone, two = tmp_path / "alone", tmp_path / "two"
    options = {"steps": 20, "optimizer": {"lr": 1e-3}}
    train_autoencoder(autoencoder_recipe(run=str(alone), **options))
    run(write_recipe(autoencoder_recipe(run=str(two), **options)), 2)
    same(alone, two, steps=20)
    adversarial = {"loss": {"gan": 0.1}, "discriminator": {"width": 8, "depth": 1}}
    run(write_recipe(autoencoder_recipe(run=str(tmp_path / "gan"), steps=3, **adversarial)), 2)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_the_run_which_then_resumes(
    transformer_recipe, write_recipe, tmp_path: Path, mode: str, killed: int
):
    recipe = write_recipe(transformer_recipe(**ENDLESS))
    process = start(recipe, 2, f"parallel.mode={mode}")
    wait_for_lines(tmp_path / "run", 25, process)
    numbers = workers(process.pid)
    assert len(numbers) == 2
    os.kill(numbers[killed], signal.SIGKILL)
    begun = time.monotonic()
    _, said = process.communicate(timeout=60)
    print(f"{mode}: ended {time.monotonic() - begun:.1f} s after process {killed} was killed")
    assert process.returncode != 0, said
    assert not any(Path(f"/proc/{number}").exists() for number in numbers)
    done = len(losses(tmp_path / "run"))
    said = run(recipe, 2, f"parallel.mode={mode}", f"steps={done + 20}")
    assert "resuming" in said
    assert len(losses(tmp_path / "run")) == done + 20


@pytest.mark.slow
def test_asked_to_stop_all_save_the_same_step_and_a_second_run_is_refused(
    transformer_recipe, write_recipe, tmp_path: Path
):
    recipe = write_recipe(transformer_recipe(**{**ENDLESS, "checkpoint": {"every": 1_000_000}}))
    first = start(recipe, 2, "parallel.mode=fsdp")
    wait_for_lines(tmp_path / "run", 5, first)
    second = start(recipe, 2, "parallel.mode=fsdp")
    _, refused = second.communicate(timeout=SECONDS)
    assert second.returncode != 0
    assert refused.count("is in use by process") == 1, refused
    first.send_signal(signal.SIGTERM)
    _, said = first.communicate(timeout=SECONDS)
    assert "stopped and saved at step" in said
    (saved,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert checkpoint.verify(saved) is None
    assert len(list(saved.glob("model-*"))) == 2
    assert int(saved.name[5:]) == len(losses(tmp_path / "run"))


@pytest.mark.slow
def test_nan_in_one_process_ends_all_and_is_named_once(
    transformer_recipe, write_recipe, tmp_path: Path
):
    recipe = write_recipe(transformer_recipe(**LONG))
    process = start(recipe, 2, "parallel.mode=fsdp", "optimizer.lr=1e30", "clip=1e30")
    _, said = process.communicate(timeout=SECONDS)
    assert process.returncode != 0
    assert said.count("error: ") == 1 and "samples: " in said


# Without processes


def test_slots_cover_the_batch_once_in_any_split():
    for count, accumulate in ((1, 1), (1, 4), (2, 2), (4, 1), (8, 1)):
        ranges = [Processes(rank, count).slots(8, accumulate) for rank in range(count)]
        assert [slot for parts in ranges for part in parts for slot in part] == list(range(8))
        assert all(len(parts) == accumulate for parts in ranges)


@pytest.mark.parametrize(("batch", "count", "accumulate"), [(8, 3, 1), (8, 4, 4), (2, 4, 1)])
def test_a_batch_that_does_not_divide_is_refused(batch: int, count: int, accumulate: int):
    with pytest.raises(ConfigError, match=f"`batch` is {batch}; it must be a multiple of"):
        Processes(0, count).slots(batch, accumulate)


@pytest.mark.parametrize("accumulate", [2, 8])
def test_accumulation_equals_one_batch(transformer_recipe, tmp_path: Path, accumulate: int):
    once, parts = tmp_path / "once", tmp_path / "parts"
    train_transformer(transformer_recipe(run=str(once), batch=8))
    train_transformer(transformer_recipe(run=str(parts), batch=8, accumulate=accumulate))
    same(once, parts, steps=10)


def test_recomputing_blocks_changes_no_bit(transformer_recipe, tmp_path: Path):
    plain, again = tmp_path / "plain", tmp_path / "again"
    parallel = {"checkpoint_activations": True}
    model = {**TRANSFORMER, "dropout": 0.2}
    train_transformer(transformer_recipe(run=str(plain), model=model))
    train_transformer(transformer_recipe(run=str(again), model=model, parallel=parallel))
    assert (plain / "metrics.jsonl").read_bytes() == (again / "metrics.jsonl").read_bytes()


def test_blocks_are_found_not_named():
    model = Transformer(TransformerConfig.from_dict(TRANSFORMER))
    assert blocks(model) == list(model.transformer_blocks)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"accumulate": 3}, "`accumulate` is 3; it must be a divisor of the batch 4"),
        ({"optimizer": {"name": "muon"}, "parallel": {"mode": "fsdp"}}, "adamw or came"),
    ],
)
def test_what_cannot_be_split_is_refused(transformer_recipe, change, said: str):
    with pytest.raises(ConfigError, match=said):
        transformer_recipe(**change)


def test_an_autoencoder_is_not_sharded(autoencoder_recipe):
    with pytest.raises(ConfigError, match="must be ddp"):
        autoencoder_recipe(parallel={"mode": "fsdp"})
