"""What a run will need later, tried before its first step: folders, disk, the compiler.

A training of hours that ends because a folder cannot be written is lost; what can be known at its
start is said then. Models and data are opened when a task is built.
"""

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch

from opensana.device import format_bytes
from opensana.errors import CheckpointError, ConfigError
from opensana.train.checkpoints import checkpoint
from opensana.train.optim.optimizers import Optimizers
from opensana.train.optim.sizes import expected_bytes, tensor_bytes
from opensana.train.recipe import Recipe

WRITTEN = ("checkpoints", "export", "samples")
"""The folders of a run."""


def check_writable(run: Path) -> None:
    """ConfigError if the run folder, or one that will be inside it, cannot be written."""
    for folder in (run, *(run / name for name in WRITTEN)):
        parent = next(path for path in (folder, *folder.parents, Path()) if os.path.lexists(path))
        try:
            with TemporaryFile(dir=parent):
                pass
        except OSError as error:
            raise ConfigError(
                f"`run` is {str(run)!r}, but {parent} cannot be written ({error.strerror}); name"
                " another folder with --set run=FOLDER"
            ) from error


def check_compiler(recipe: Recipe, device: torch.device) -> None:
    """ConfigError if `compile = true` and torch.compile cannot compile here."""
    if not recipe.compile:
        return
    try:
        torch.compile(lambda x: 2 * x)(torch.ones(2, device=device))
    except Exception as error:  # a missing compiler is met by any part of torch.compile
        reason = str(error).split("\n")[0] or type(error).__name__
        raise ConfigError(
            f"compile = true, but torch.compile does not work here ({reason}); install"
            " a C++ compiler, or say compile=false"
        ) from error


def check_disk(recipe: Recipe, parts: Mapping[str, Any], *, done: int) -> None:
    """CheckpointError if the disk has no room for a checkpoint and the export of the run.

    Where it has none for all that are to be kept, one line says so.
    """
    run = Path(recipe.run)
    average = tensor_bytes(parts["ema"].state_tensors())
    each = sum(
        expected_bytes(part) if isinstance(part, Optimizers) else tensor_bytes(part.state_tensors())
        for part in parts.values()
    )
    free = shutil.disk_usage(run).free
    if free < each + average:
        raise CheckpointError(
            f"the disk of {run} has {format_bytes(free)} left; a checkpoint needs"
            f" {format_bytes(each)} and the export {format_bytes(average)}: make room, or name"
            " another folder with --set run=FOLDER"
        )
    left = -(-(recipe.steps - done) // recipe.checkpoint.every)
    # While the last one is written, the oldest of those that are kept is still there.
    most = min(recipe.checkpoint.keep + 1, left + checkpoint.count(run))
    wanted = (most - checkpoint.count(run)) * each + average
    if free < wanted:
        print(
            f"the disk of {run} has {format_bytes(free)} left, and the run may need"
            f" {format_bytes(wanted)}: {most} checkpoints of {format_bytes(each)} and the export;"
            " lower checkpoint.keep, or make room",
            file=sys.stderr,
        )
