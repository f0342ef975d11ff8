"""Checkpoints that are whole or absent: published by one rename, checked by a manifest.

    run/checkpoints/step-00001000/
        model.safetensors  ema.safetensors  optimizer.safetensors  state.json  recipe.toml
        manifest.json      written last: size and SHA-256 of every other file

Nothing is pickled. A damaged newest checkpoint is named, set aside, and the one before it is used.
"""

import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from opensana.errors import CheckpointError
from opensana.weights.files import write_json, write_safetensors

MANIFEST = "manifest.json"
PREFIX = "step-"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose manifest has been verified."""

    folder: Path
    step: int
    state: dict[str, Any]

    def tensors(self, name: str) -> dict[str, Tensor]:
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            raise CheckpointError(f"{self.folder} has no {path.name}; it is from another recipe")
        return load_file(path)

    def recipe(self) -> str:
        return (self.folder / "recipe.toml").read_text(encoding="utf-8")


def save(
    run: Path,
    step: int,
    *,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    recipe: str,
    keep: int,
) -> Path:
    """Publish a checkpoint atomically, then delete all but the newest `keep`."""
    root = run / "checkpoints"
    final = root / f"{PREFIX}{step:08d}"
    temporary = root / f".{final.name}.{os.getpid()}.tmp"
    try:
        root.mkdir(parents=True, exist_ok=True)
        _discard(temporary)
        temporary.mkdir()
        _write_files(temporary, tensors, {"step": step, **state}, recipe)
        _discard(final)
        os.replace(temporary, final)
        sync_folder(root)
    except OSError as error:
        _discard(temporary)
        raise CheckpointError(
            f"could not save step {step} in {root}: {error}; earlier checkpoints are untouched"
        ) from error
    _prune(root, keep=keep)
    return final


def load_latest(run: Path) -> Checkpoint | None:
    """The newest checkpoint that verifies, or None. Call only while holding the lock."""
    root = run / "checkpoints"
    clean(root)
    for folder in sorted(_published(root), reverse=True):
        problem = verify(folder)
        if problem is None:
            state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            return Checkpoint(folder=folder, step=state["step"], state=state)
        _set_aside(folder, problem)
    return None


def verify(folder: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = manifest["files"]
        for name, entry in files.items():
            size = (folder / name).stat().st_size
            if size != entry["bytes"]:
                return f"{name} has {size} bytes, not {entry['bytes']}"
            if _digest(folder / name) != entry["sha256"]:
                return f"{name} does not match its SHA-256"
    except FileNotFoundError as error:
        return f"{Path(str(error.filename)).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be used: {error}"
    return None


def clean(root: Path) -> None:
    """Remove what an interrupted save left behind."""
    if root.is_dir():
        for leftover in root.glob(".*"):
            _discard(leftover)


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold the run folder; a second trainer on it is refused at once."""
    run.mkdir(parents=True, exist_ok=True)
    with (run / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            owner = lock.read().strip() or "another process"
            raise CheckpointError(
                f"{run} is in use by {owner}; stop that training or choose another `run` folder"
            ) from error
        lock.seek(0)
        lock.truncate()
        lock.write(f"process {os.getpid()}")
        lock.flush()
        yield


def export(folder: Path, *, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Write weights in the published layout; each file appears whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config)
    write_safetensors(_plain(state), folder)


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_files(
    folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], recipe: str
) -> None:
    for name, group in tensors.items():
        save_file(_plain(group), folder / f"{name}.safetensors")
    (folder / "state.json").write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
    (folder / "recipe.toml").write_text(recipe, encoding="utf-8")
    written = sorted(folder.iterdir())
    for path in written:
        _sync(path)
    entries = {p.name: {"bytes": p.stat().st_size, "sha256": _digest(p)} for p in written}
    manifest = json.dumps({"files": entries}, indent=2) + "\n"
    (folder / MANIFEST).write_text(manifest, encoding="utf-8")
    _sync(folder / MANIFEST)
    sync_folder(folder)


def _plain(group: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies without shared storage: what safetensors accepts."""
    return {
        name: value.detach().cpu().contiguous().clone() for name, value in sorted(group.items())
    }


def _published(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return [p for p in root.iterdir() if p.name.startswith(PREFIX) and p.suffix == ""]


def _prune(root: Path, *, keep: int) -> None:
    for old in sorted(_published(root))[:-keep]:
        try:
            _discard(old)
        except OSError as error:
            print(f"could not delete the old checkpoint {old}: {error}", file=sys.stderr)


def _set_aside(folder: Path, problem: str) -> None:
    """Rename a damaged checkpoint so that it neither blocks nor outlives good ones."""
    aside = folder.with_name(f"{folder.name}.damaged")
    print(f"checkpoint {folder} is damaged ({problem}); using the one before it", file=sys.stderr)
    _discard(aside)
    os.replace(folder, aside)


def _discard(path: Path) -> None:
    """Remove a file or folder; a folder disappears by one rename before its files go."""
    if path.is_dir() and not path.name.startswith("."):
        doomed = path.with_name(f".{path.name}.old")
        shutil.rmtree(doomed, ignore_errors=True)
        os.replace(path, doomed)
        path = doomed
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
