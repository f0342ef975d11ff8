"""A checkpoint is whole or absent, and damage is named, never loaded."""

import json
from pathlib import Path

import pytest
import torch

from opensana.errors import CheckpointError
from opensana.train import checkpoint
from opensana.train.lock import locked


def save(run: Path, step: int, *, keep: int = 3) -> Path:
    tensors = {"model": {"weight": torch.full((4, 3), float(step))}, "optimizer": {}}
    return checkpoint.save(
        run, step, tensors=tensors, state={"seed": 1}, recipe="steps = 1\n", keep=keep
    )


def steps(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_what_was_saved_is_loaded(tmp_path: Path):
    save(tmp_path, 10)
    found = checkpoint.load_latest(tmp_path)
    assert found is not None and found.step == 10 and found.state["seed"] == 1
    assert torch.equal(found.tensors("model")["weight"], torch.full((4, 3), 10.0))
    assert found.recipe() == "steps = 1\n"


def test_manifest_names_every_other_file(tmp_path: Path):
    folder = save(tmp_path, 10)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest["files"]) | {"manifest.json"} == {p.name for p in folder.iterdir()}
    assert not list(folder.glob("*.p*t*")), "nothing is pickled"


def test_no_checkpoint_is_none(tmp_path: Path):
    assert checkpoint.load_latest(tmp_path) is None


def flip(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-3])


def lose(folder: Path) -> None:
    (folder / "state.json").unlink()


def lose_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def break_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("[1")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (flip, "model.safetensors does not match its SHA-256"),
        (cut, "model.safetensors has"),
        (lose, "state.json is missing"),
        (lose_manifest, "manifest.json is missing"),
        (break_manifest, "manifest.json cannot be used"),
    ],
)
def test_damaged_newest_is_named_and_the_one_before_used(tmp_path: Path, capsys, damage, said):
    save(tmp_path, 10)
    damage(save(tmp_path, 20))
    found = checkpoint.load_latest(tmp_path)
    assert found is not None and found.step == 10
    message = capsys.readouterr().err
    assert "step-00000020" in message and said in message
    save(tmp_path, 15, keep=1)
    newest = checkpoint.load_latest(tmp_path)
    assert newest is not None and newest.step == 15, "a damaged one never outlives a good one"


def test_keeps_the_newest(tmp_path: Path):
    for step in (10, 20, 30, 40):
        save(tmp_path, step, keep=2)
    assert steps(tmp_path) == ["step-00000030", "step-00000040"]


def test_leftovers_of_a_killed_save_are_removed(tmp_path: Path):
    save(tmp_path, 10)
    leftover = tmp_path / "checkpoints" / ".step-00000020.123.tmp"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"half")
    found = checkpoint.load_latest(tmp_path)
    assert found is not None and found.step == 10 and not leftover.exists()


def test_full_disk_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save(tmp_path, 10)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(CheckpointError, match="No space left"):
        save(tmp_path, 20)
    assert steps(tmp_path) == ["step-00000010"]


def test_an_old_one_that_cannot_be_deleted_stops_nothing(tmp_path: Path, monkeypatch, capsys):
    save(tmp_path, 10)

    def refuse(path: Path) -> None:
        if path.name == "step-00000010":
            raise PermissionError(13, "not permitted")

    monkeypatch.setattr(checkpoint, "_discard", refuse)
    save(tmp_path, 20, keep=1)
    assert steps(tmp_path) == ["step-00000010", "step-00000020"]
    assert "could not delete" in capsys.readouterr().err


def test_saving_a_step_again_replaces_it(tmp_path: Path):
    save(tmp_path, 10)
    save(tmp_path, 10)
    assert steps(tmp_path) == ["step-00000010"]


def test_two_trainers_on_one_folder_are_refused(tmp_path: Path):
    refused = pytest.raises(CheckpointError, match="in use by process")
    with locked(tmp_path), refused, locked(tmp_path):
        pass
    with locked(tmp_path):
        pass
