"""A step's numbers on a GPU: read when the next has been launched; what is not finite changes none.

Also tests `train/engine/figures.py`. A CPU stands in for the GPU, or tensors without numbers.
"""

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from opensana.errors import NumericsError
from opensana.train.autoencoder.losses import ReconstructionLoss
from opensana.train.autoencoder.task import AutoencoderTask, train_autoencoder
from opensana.train.engine import figures, loop
from opensana.train.engine.figures import Watch, reads_late
from opensana.train.engine.parallel import Processes
from opensana.train.monitor.metrics import Metrics
from opensana.train.transformer import task as training
from opensana.train.transformer.draws import BlockDraws
from opensana.train.transformer.task import FlowTask, train_transformer, transformer_task
from tests.launches import Launches
from tests.train.reading import bits

CPU, META = torch.device("cpu"), torch.device("meta")


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU reads as a GPU would."""
    for module in (figures, loop):
        monkeypatch.setattr(module, "reads_late", lambda _: True)


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the trainer does, as it does it."""
    seen: list[str] = []

    def noted(kind: type, name: str, word: Callable[..., str]) -> None:
        real = getattr(kind, name)

        def call(self: Any, *given: Any, **named: Any) -> Any:
            seen.append(word(*given))
            return real(self, *given, **named)

        monkeypatch.setattr(kind, name, call)

    noted(FlowTask, "train", lambda step, batch: f"train {step + 1}")
    noted(Metrics, "step", lambda step, values: f"report {step}")
    noted(FlowTask, "evaluate", lambda: "measure")
    noted(FlowTask, "draw", lambda step: "draw")
    noted(Metrics, "sync", lambda: "save")
    return seen


SHORT = {"steps": 4, "checkpoint": {"every": 3}, "evaluate": {"every": 4, "pictures": 4}}


@pytest.mark.usefixtures("late")
def test_a_step_is_reported_when_the_next_is_launched(transformer_recipe, order: list[str]):
    """And before anything is saved, measured or drawn."""
    train_transformer(transformer_recipe(**SHORT, samples={"every": 2}))
    assert order == [
        *("measure", "train 1", "train 2", "report 1", "report 2", "draw"),
        *("train 3", "report 3", "save", "train 4", "report 4", "save", "measure", "draw"),
    ]


def test_a_cpu_reports_each_step_at_once(transformer_recipe, order: list[str]):
    train_transformer(transformer_recipe(**SHORT))
    assert order[:5] == ["measure", "train 1", "report 1", "train 2", "report 2"]


@pytest.mark.parametrize("optimizer", ["adamw", "came", "muon"])
def test_reading_late_changes_no_number(
    transformer_recipe, tmp_path: Path, request: pytest.FixtureRequest, optimizer: str
):
    at_once, late = tmp_path / "at once", tmp_path / "late"
    options = {"optimizer": {"name": optimizer, "lr": 1e-3}}
    train_transformer(transformer_recipe(run=str(at_once), **options))
    request.getfixturevalue("late")
    train_transformer(transformer_recipe(run=str(late), **options))
    assert bits(at_once) == bits(late)
    assert (at_once / "metrics.jsonl").read_bytes() == (late / "metrics.jsonl").read_bytes()


@pytest.mark.usefixtures("late")
def test_a_step_that_is_not_finite_is_named_one_step_later(
    transformer_recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: list[str]
):
    real, calls, kept = training.flow_matching_loss, iter(range(100)), {}

    def poisoned(*given):
        call = next(calls)  # the first one is the evaluation's
        return real(*given) * (torch.inf if call == 7 else 1)

    def train(self, step: int, batch: Any):
        weights = torch.cat([p.detach().flatten() for p in self.optimizer.parameters])
        kept[step + 1] = weights, weights.clone()
        return following(self, step, batch)

    following = FlowTask.train
    monkeypatch.setattr(training, "flow_matching_loss", poisoned)
    monkeypatch.setattr(FlowTask, "train", train)
    with pytest.raises(NumericsError, match=r"loss is inf at step 7; samples: \d \(caption -?\d+"):
        train_transformer(transformer_recipe())
    assert order[-3:] == ["train 7", "report 6", "train 8"]
    assert not torch.equal(kept[6][1], kept[7][1]), "the sixth step was made"
    assert torch.equal(kept[7][1], kept[8][1]), "the seventh was not"
    run = tmp_path / "run"
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000005"]
    last = (run / "metrics.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["step"] == 6


@pytest.mark.usefixtures("late")
def test_the_autoencoder_reads_late_with_a_discriminator(
    autoencoder_recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    gan = {"l1": 1.0, "gan": 0.1, "gan_adaptive": True, "gan_start": 0}
    options = {"loss": gan, "discriminator": {"width": 8, "depth": 2}}
    train_autoencoder(autoencoder_recipe(**options, steps=2))
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[1])
    assert {"loss", "gan", "gan_weight", "judge", "lr", "gradient"} < set(line)
    task = AutoencoderTask(autoencoder_recipe(**options))
    assert task.gan is not None
    parts = [*task.model.parameters(), *task.gan.discriminator.parameters()]
    before = [p.detach().clone() for p in parts]
    real = ReconstructionLoss.terms
    monkeypatch.setattr(
        ReconstructionLoss,
        "terms",
        lambda *given: {n: v * torch.nan for n, v in real(*given).items()},
    )
    found = task.train(0, task.prepare(0))
    monkeypatch.setattr(ReconstructionLoss, "terms", real)
    task.train(1, task.prepare(1))
    assert all(torch.equal(*pair) for pair in zip(parts, before, strict=True))
    with pytest.raises(NumericsError, match="loss is nan at step 1; samples: P"):
        found()


def test_a_flag_stays_from_the_first_number_that_is_not_finite():
    watch = Watch(META)
    assert watch.late and watch.found_inf is None
    watch.late, flags = True, []
    for value in (1.0, torch.nan, 1.0):
        watch.read({"x": torch.tensor([1.0, value]), "y": torch.ones(())}, lambda found: {})
        assert watch.found_inf is not None
        flags.append(float(watch.found_inf))
    assert flags == [0.0, 1.0, 1.0]


def test_numbers_come_back_in_their_shapes():
    for watch in (Watch(CPU), Watch(META)):
        given = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(7.0)}
        seen: dict[str, torch.Tensor] = {}
        assert watch.read(given, lambda found, seen=seen: seen.update(found) or {"n": 1.0})() == {
            "n": 1.0
        }
        assert all(torch.equal(seen[name], given[name]) for name in given)


def test_who_reads_late():
    kinds = ("cpu", "cuda", "cuda:1", "mps")
    assert [reads_late(torch.device(kind)) for kind in kinds] == [False, True, True, False]


def test_a_step_on_a_gpu_waits_for_nothing(transformer_recipe, monkeypatch: pytest.MonkeyPatch):
    """All its numbers are one copy in flight, as is what the loader sends."""
    monkeypatch.setattr(BlockDraws, "_generator", lambda *_: None)  # without numbers, none
    monkeypatch.setattr(training, "products", lambda *_: nullcontext())
    recipe = transformer_recipe(optimizer={"name": "came"}, clip=1.0)
    task = transformer_task(recipe, Processes(device=META))
    with Launches() as seen:
        task.train(0, task.prepare(0))
    assert seen.host_reads == ["cpu in flight"]
    assert set(seen.uploads) == {"_to_copy in flight"}
