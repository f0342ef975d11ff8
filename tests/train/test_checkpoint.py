"""A checkpoint is whole or absent, and damage is named, never loaded.

Also tests `train/checkpoints/checkpoint.py`, `train/checkpoints/stored.py`,
`train/checkpoints/export.py` and `train/engine/task.py`.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from opensana.errors import CheckpointError
from opensana.train.checkpoints import checkpoint
from opensana.train.checkpoints.export import Saver
from opensana.train.engine.loop import locked

# What safetensors raises for it; it is no OSError.
FULL = SafetensorError("I/O error: No space left on device (os error 28)")


def save(run: Path, step: int, *, keep: int = 3) -> Path:
    tensors = {"model": {"weight": torch.full((4, 3), float(step))}, "optimizer": {}}
    return checkpoint.save(
        run, step, tensors=tensors, state={"seed": 1}, recipe="steps = 1\n", keep=keep
    )


def steps(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def save_by(run: Path, step: int, count: int) -> Path:
    """As `count` processes would: two columns of rows counted up, and a number held by all."""
    rows = torch.arange(10.0).view(5, 2)

    def write(index: int) -> Path:
        few = rows[:1] if index == 0 else rows[:0]
        group = {"rows": torch.tensor_split(rows, count)[index].clone(), "few": few.clone()}
        extra = {"count": torch.tensor(7.0)} if index == 0 else {}
        return checkpoint.save(
            run,
            step,
            tensors={"model": {**group, **extra}},
            state={},
            recipe="",
            keep=3,
            writer=checkpoint.Writer(index, count, seconds=10),
        )

    with ThreadPoolExecutor(count) as pool:
        return next(iter(pool.map(write, range(count))))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_what_several_saved_any_number_reads(tmp_path: Path, count: int):
    folder = save_by(tmp_path, 10, count)
    assert len(list(folder.glob("model*.safetensors"))) == count
    assert not list(folder.glob("writer*")), "reports are gone"
    found = checkpoint.load_latest(tmp_path)
    assert found is not None
    stored, rows = found.tensors("model"), torch.arange(10.0).view(5, 2)
    assert sorted(stored) == ["count", "few", "rows"] and stored.shape("rows") == (5, 2)
    assert torch.equal(stored["rows"], rows) and torch.equal(stored["few"], rows[:1])
    assert stored["count"] == 7 and stored.shape("count") == ()
    for start in range(6):
        for stop in range(start, 6):
            assert torch.equal(stored.rows("rows", start, stop), rows[start:stop])


def test_damage_to_the_part_of_one_process_is_found(tmp_path: Path, capsys):
    save_by(tmp_path, 10, 2)
    path = save_by(tmp_path, 20, 2) / "model-00002-of-00002.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    found = checkpoint.load_latest(tmp_path)
    assert found is not None and found.step == 10
    assert "model-00002-of-00002.safetensors does not match" in capsys.readouterr().err


def test_the_failure_of_one_process_is_that_of_the_save(tmp_path: Path, monkeypatch):
    save(tmp_path, 10)
    real = checkpoint.save_file

    def full(tensors, path: Path):
        if "00002-of" in path.name:
            raise FULL
        real(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(CheckpointError, match="No space left"):
        save_by(tmp_path, 20, 2)
    found = checkpoint.load_latest(tmp_path)
    assert found is not None and found.step == 10


def test_a_process_that_never_writes_is_not_waited_for_in_vain(tmp_path: Path):
    with pytest.raises(CheckpointError, match="process 1 has not written its part"):
        checkpoint.save(
            tmp_path,
            10,
            tensors={},
            state={},
            recipe="",
            keep=1,
            writer=checkpoint.Writer(0, 2, seconds=0.05),
        )


def test_saving_in_the_background_raises_at_the_next_chance():
    def fail() -> None:
        raise CheckpointError("no")

    saver = Saver(asynchronous=True)
    saver.submit(fail)
    with pytest.raises(CheckpointError, match="no"):
        saver.wait()
    saver.wait()


def test_copies_are_independent():
    weight = torch.ones(3, 2).T
    copies = checkpoint.copied({"weight": weight})
    weight.zero_()
    assert copies["weight"].is_contiguous() and copies["weight"].eq(1).all()


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
        raise FULL

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
