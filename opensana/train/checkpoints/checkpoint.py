"""Checkpoints that are whole or absent: published by one rename, checked by a manifest.

    run/checkpoints/step-00001000/
        model.safetensors  ema.safetensors  optimizer.safetensors  state.json  recipe.toml
        manifest.json      written last: size and SHA-256 of every other file

Where weights are sharded, every process writes its rows (model-00001-of-00004.safetensors, see
`stored.py`), and the first publishes when it has seen the list of files of each. Nothing is
pickled. A damaged newest checkpoint is named, set aside, and the one before it is used.
"""

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from opensana.errors import CheckpointError, OpensanaError
from opensana.files.writing import write_json
from opensana.train.checkpoints.stored import Stored

MANIFEST = "manifest.json"
PREFIX = "step-"
Entries = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose manifest has been verified."""

    folder: Path
    step: int
    state: dict[str, Any]

    def tensors(self, name: str) -> Stored:
        path = self.folder / f"{name}.safetensors"
        files = [path] if path.exists() else sorted(self.folder.glob(f"{name}-*-of-*.safetensors"))
        if not files:
            raise CheckpointError(f"{self.folder} has no {path.name}; it is from another recipe")
        return Stored(files)

    def recipe(self) -> str:
        return (self.folder / "recipe.toml").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Writer:
    """One of the processes that write a checkpoint; `seconds` is how long it waits for others."""

    index: int = 0
    count: int = 1
    seconds: float = 600.0

    def file(self, name: str) -> str:
        """The name of this writer's file of a group of tensors."""
        part = f"-{self.index + 1:05d}-of-{self.count:05d}" if self.count > 1 else ""
        return f"{name}{part}.safetensors"


ONLY = Writer()


def copied(group: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies on the CPU without shared storage: what safetensors accepts."""
    return {
        name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, value in sorted(group.items())
    }


def save(
    run: Path,
    step: int,
    *,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    recipe: str,
    keep: int,
    writer: Writer = ONLY,
) -> Path:
    """Publish a checkpoint atomically, then delete all but the newest `keep`.

    `tensors` are copies (see `copied`). All writers call; the first one publishes.
    """
    root = run / "checkpoints"
    final = root / f"{PREFIX}{step:08d}"
    temporary = root / f".{final.name}.tmp"
    try:
        temporary.mkdir(parents=True, exist_ok=True)
        entries = _write_tensors(temporary, tensors, writer)
        if writer.index == 0:
            texts = {"state.json": json.dumps({"step": step, **state}, indent=2) + "\n"}
            for name, text in (texts | {"recipe.toml": recipe}).items():
                (temporary / name).write_text(text, encoding="utf-8")
                entries |= _settled([temporary / name])
            entries |= _entries_of_others(temporary, writer)
            _publish(temporary, final, entries)
    except (OSError, SafetensorError) as error:
        _report(temporary, writer, {"problem": str(error)})
        if writer.count == 1:
            _discard(temporary)
        raise CheckpointError(
            f"could not save step {step} in {root}: {error}; earlier checkpoints are untouched"
        ) from error
    if writer.index == 0:
        _prune(root, keep=keep)
    return final


def load_latest(run: Path) -> Checkpoint | None:
    """The newest checkpoint that verifies, or None. Call only while holding the lock."""
    root = run / "checkpoints"
    clean(root)
    for folder in sorted(_published(root), reverse=True):
        problem = verify(folder)
        if problem is None:
            return opened(folder)
        _set_aside(folder, problem)
    return None


def at_step(run: Path, step: int) -> Checkpoint:
    """A checkpoint that another process has verified."""
    return opened(run / "checkpoints" / f"{PREFIX}{step:08d}")


def opened(folder: Path) -> Checkpoint:
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    return Checkpoint(folder=folder, step=state["step"], state=state)


def verify(folder: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = manifest["files"].items()
        with ThreadPoolExecutor() as pool:
            problems = pool.map(lambda file: _difference(folder / file[0], file[1]), files)
            return next((problem for problem in problems if problem), None)
    except FileNotFoundError as error:
        return f"{Path(str(error.filename)).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be used: {error}"
    return None


def _difference(path: Path, entry: Mapping[str, Any]) -> str | None:
    size = path.stat().st_size
    if size != entry["bytes"]:
        return f"{path.name} has {size} bytes, not {entry['bytes']}"
    if _digest(path) != entry["sha256"]:
        return f"{path.name} does not match its SHA-256"
    return None


def count(run: Path) -> int:
    """How many checkpoints the run has."""
    return len(_published(run / "checkpoints"))


def clean(root: Path) -> None:
    """Remove what an interrupted save left behind."""
    if root.is_dir():
        for leftover in root.glob(".*"):
            _discard(leftover)


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_tensors(
    folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], writer: Writer
) -> Entries:
    """This writer's files, on disk; the first writer learns of them when all are."""
    paths = [folder / writer.file(name) for name in tensors]
    for path, group in zip(paths, tensors.values(), strict=True):
        save_file(dict(group), path)
    entries = _settled(paths)
    if writer.index > 0:
        _report(folder, writer, {"files": entries})
    return entries


def _settled(paths: list[Path]) -> Entries:
    """Files made to survive a power failure, with their sizes and digests."""
    for path in paths:
        _sync(path)
    return {p.name: {"bytes": p.stat().st_size, "sha256": _digest(p)} for p in paths}


def _report(folder: Path, writer: Writer, words: Mapping[str, Any]) -> None:
    """Tell the first writer of this one's files, or of its failure, by a file that appears whole.

    No message: a save in the background must not get between the messages of the training.
    """
    if writer.index > 0:
        try:
            write_json(folder / f"writer-{writer.index}.json", words)
        except (OSError, OpensanaError) as error:
            print(f"process {writer.index} cannot write: {error}", file=sys.stderr)


def _entries_of_others(folder: Path, writer: Writer) -> Entries:
    """Wait until every other writer has reported; its report goes, its files stay."""
    entries: Entries = {}
    deadline = time.monotonic() + writer.seconds
    for index in range(1, writer.count):
        report = folder / f"writer-{index}.json"
        while not report.exists():
            if time.monotonic() > deadline:
                raise TimeoutError(f"process {index} has not written its part")
            time.sleep(0.01)
        words = json.loads(report.read_text(encoding="utf-8"))
        if "problem" in words:
            raise OSError(f"process {index}: {words['problem']}")
        entries |= words["files"]
        report.unlink()
    return entries


def _publish(temporary: Path, final: Path, entries: Entries) -> None:
    manifest = json.dumps({"files": dict(sorted(entries.items()))}, indent=2) + "\n"
    (temporary / MANIFEST).write_text(manifest, encoding="utf-8")
    _sync(temporary / MANIFEST)
    sync_folder(temporary)
    _discard(final)
    os.replace(temporary, final)
    sync_folder(final.parent)


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
