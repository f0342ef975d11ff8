"""Train the emoji transformer on a GPU within given minutes, from packed features to small files.

    python recipes/emoji/train_in.py data/emoji-scenes.npz --minutes 8 --to weights

It runs `opensana train` with the recipe, with all features in the device's memory and a large
batch. A few steps tell its speed; the steps that fit into the time follow, with a falling rate. The
same command goes on where a run folder is left; `--initial weights` goes on from exported ones on
another machine. Weights are written in half precision, in files of at most 15 MiB, beside the
losses. `--set` changes the recipe as in `opensana train`.
"""

import argparse
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from pack import unpack

from opensana.errors import OpensanaError
from opensana.files.writing import write_json
from opensana.models.find import find_transformer
from opensana.models.load import load_transformer
from opensana.train import run
from opensana.train.checkpoints import checkpoint
from opensana.weights.safetensors import write_safetensors

RECIPE = Path(__file__).with_name("scenes.toml")
MOST_BYTES = 15 * 2**20
WARM, MEASURED = 40, 20
"""Steps that tell the speed, and how many of them count: compiling is over by then."""
SPARED = 20.0
"""Seconds kept for the last checkpoint and for writing the weights."""
USED = 0.97
"""Of the time that is left: steps are not all as fast as those that were measured."""


def main() -> int:
    parser = argparse.ArgumentParser(description="Train the emoji transformer in given minutes.")
    parser.add_argument("packed", type=Path, help="what pack.py wrote")
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--to", type=Path, required=True, help="a folder for the weights")
    parser.add_argument("--run", type=Path, default=Path("runs/emoji-gpu"))
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--initial", help="weights to go on from, such as an earlier --to")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    arguments = parser.parse_args()
    end = time.monotonic() + 60 * arguments.minutes - SPARED
    try:
        features = arguments.run.with_name(arguments.run.name + "-features")
        if not features.is_dir():
            unpack(arguments.packed, features)
        train_until(end, arguments, settings(arguments, features))
        export(arguments.run, arguments.to)
    except OpensanaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def settings(arguments: argparse.Namespace, features: Path) -> list[str]:
    """Overrides of the recipe; samples are captions of the cache: no text encoder is there."""
    own = [
        f"run={arguments.run}",
        f"data.folder={features}",
        f"batch={arguments.batch}",
        "resident=true",
        "tensorboard=false",
        "samples.prompts=[]",
        "console_seconds=10",
    ]
    return own + ([f"initial={arguments.initial}"] if arguments.initial else [])


def train_until(end: float, arguments: argparse.Namespace, own: list[str]) -> None:
    """A few steps for the speed, then as many as fit."""
    before = done(arguments.run)
    timed = [f"steps={before + WARM}", "schedule.decay=constant", *seldom(10**9)]
    with stopped_at(end):
        run(arguments.recipe, [*own, *timed, *arguments.set])
        seconds = step_seconds(arguments.run)
        reached = done(arguments.run)
        left = int(USED * max(0.0, end - time.monotonic()) / seconds)
        print(f"{seconds * 1000:.1f} ms a step: {left} more until {reached + left}", flush=True)
        if left == 0:
            return
        steps = [f"steps={reached + left}", "schedule.decay=linear", "schedule.final=0.02"]
        run(arguments.recipe, [*own, *steps, *seldom(int(60 / seconds) + 1), *arguments.set])


def seldom(steps: int) -> list[str]:
    """Save and measure every so many steps, and draw at the end alone."""
    return [f"checkpoint.every={steps}", f"evaluate.every={steps}", f"samples.every={10**9}"]


def done(folder: Path) -> int:
    found = checkpoint.load_latest(folder) if folder.is_dir() else None
    return found.step if found else 0


def step_seconds(folder: Path) -> float:
    lines = (folder / "speed.jsonl").read_text("utf-8").splitlines()
    return median(json.loads(line)["seconds"] for line in lines[-MEASURED:])


class stopped_at:
    """A context that asks the trainer to save and stop, as Ctrl-C does, when time is over."""

    def __init__(self, end: float) -> None:
        self.timer = threading.Timer(
            max(0.0, end - time.monotonic()), os.kill, (os.getpid(), signal.SIGTERM)
        )
        self.timer.daemon = True

    def __enter__(self) -> None:
        self.timer.start()

    def __exit__(self, *_: object) -> None:
        self.timer.cancel()


def export(folder: Path, to: Path) -> None:
    """The EMA weights in half precision and small files, the losses, and what was done."""
    network = load_transformer(find_transformer(str(folder / "export")))
    state = {name: value.to(torch.float16) for name, value in network.state_dict().items()}
    files = write_safetensors(state, to, max_shard_bytes=MOST_BYTES)
    write_json(to / "config.json", network.config.to_dict())
    losses = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    fixed = [line for line in losses if "fixed_loss" in line]
    summary: dict[str, Any] = {
        "steps": done(folder),
        "milliseconds_a_step": 1000 * step_seconds(folder),
        "fixed": fixed,
        "losses": losses[:: max(1, len(losses) // 1000)],
    }
    write_json(to / "training.json", summary)
    sizes = ", ".join(f"{file.name} {file.stat().st_size / 2**20:.1f} MiB" for file in files)
    print(f"{to}: {summary['steps']} steps; {sizes}", flush=True)
    for line in fixed:
        print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
