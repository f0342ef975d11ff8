"""Ten thousand pictures measured: peak memory and time, and killed to the same figures.

    python -m benchmarks.many_pictures --count 10000 [--network inception] [--threads 1]

Two sets of `count` small pictures are made and measured by the sana protocol in processes of their
own: a tenth of them, all of them, and all of them once more while the process is killed (SIGKILL)
after a third of the drawn pictures and after two thirds of the reference, and then started again.
The figures must be equal to the last digit, and so must the bytes of all features.

`--network small` is a random layer to Inception's 2048 features, because Inception itself takes 5.7
billion multiply-adds a picture; `inception` is Inception with random weights. Everything else is
what `opensana evaluate --benchmark` runs. Memory is the most that was resident, mapped files
counted. The last line is JSON.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.decode_memory import peak_memory
from benchmarks.timing import machine
from opensana.evaluate.benchmark.judges import Judges
from opensana.evaluate.benchmark.run import Options, evaluate_benchmark
from opensana.files.growing import JOURNAL
from opensana.metrics.inception import FEATURES, Inception

SIDE = 32
GRID = 8
KILLS = (("features", 1 / 3), ("reference", 2 / 3))
POLL_SECONDS, WAIT_SECONDS = 0.02, 3600.0


class Small(nn.Module):
    """A random layer on means of areas [B, 3, 8, 8], with as many features as Inception."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * GRID * GRID, FEATURES)

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.relu(self.layer(functional.adaptive_avg_pool2d(pixels, GRID).flatten(1)))


def random_inception() -> Inception:
    """Random weights that keep the size of activations; torch's own let them vanish."""
    network = Inception()
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
    return network


NETWORKS = {"small": Small, "inception": random_inception}


def make_pictures(folder: Path, count: int, *, seed: int) -> None:
    """Smooth random pictures."""
    draw = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for number in range(count):
        coarse = Image.fromarray(draw.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(folder / f"{number:06d}.png")


def measure(
    root: Path, to: Path, network: str, count: int, bootstrap: int, threads: int
) -> dict[str, Any]:
    """What `opensana evaluate --benchmark real --pictures drawn` does, in this process."""
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    judges: Any = Judges(NETWORKS[network]().eval())  # type: ignore[arg-type]
    options = Options("", str(root / "drawn"), str(root / "real"), limit=count)
    started = time.monotonic()
    figures = evaluate_benchmark(options, to, judges, replicates=bootstrap, device="cpu")
    return {
        "seconds": round(time.monotonic() - started, 1),
        "peak": peak_memory(),
        "figures": figures["figures"],
    }


def elsewhere(*arguments: object) -> "subprocess.Popen[str]":
    """`measure` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.many_pictures", "--here", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def finished(process: "subprocess.Popen[str]") -> dict[str, Any]:
    output, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"the measuring process ended with {process.returncode}")
    return json.loads(output.splitlines()[-1])


def killed(to: Path, count: int, *arguments: object) -> list[int]:
    """Kill a measuring process at each of `KILLS`; how many pictures were kept each time."""
    kept = []
    for name, share in KILLS:
        process = elsewhere(*arguments)
        deadline = time.monotonic() + WAIT_SECONDS
        while rows_of(to / name) < share * count and process.poll() is None:
            if time.monotonic() > deadline:
                process.kill()
                raise RuntimeError(f"{name} does not grow")
            time.sleep(POLL_SECONDS)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if process.returncode != -signal.SIGKILL:
            raise RuntimeError(f"it ended before it was killed, with {process.returncode}")
        kept.append(rows_of(to / name))
    return kept


def rows_of(folder: Path) -> int:
    """The pictures of the last commit."""
    try:
        files = json.loads((folder / JOURNAL).read_text("utf-8"))["files"]
    except FileNotFoundError:
        return 0
    return min((values["rows"] for values in files.values()), default=0)


def same_features(first: Path, second: Path) -> bool:
    names = [path.relative_to(first) for path in sorted(first.glob("*/*.npy"))]
    return bool(names) and all(
        (first / name).read_bytes() == (second / name).read_bytes() for name in names
    )


def compare(
    root: Path, count: int, network: str, *, bootstrap: int = 2, threads: int = 1
) -> dict[str, Any]:
    """All the runs; RuntimeError if a killed run ends with other figures."""
    for name, seed in (("drawn", 1), ("real", 2)):
        make_pictures(root / name, count, seed=seed)

    def arguments(to: str, pictures: int) -> tuple[object, ...]:
        return root, root / to, network, pictures, bootstrap, threads

    part = finished(elsewhere(*arguments("part", count // 10)))
    whole = finished(elsewhere(*arguments("whole", count)))
    kept = killed(root / "killed", count, *arguments("killed", count))
    resumed = finished(elsewhere(*arguments("killed", count)))
    if resumed["figures"] != whole["figures"]:
        raise RuntimeError(f"other figures: {resumed['figures']} and {whole['figures']}")
    if not same_features(root / "whole", root / "killed"):
        raise RuntimeError("other features")
    return {
        "machine": machine(),
        "network": network,
        "pictures": [count // 10, count],
        "peak_mib": [run["peak"] >> 20 for run in (part, whole, resumed)],
        "seconds": [run["seconds"] for run in (part, whole, resumed)],
        "kept_when_killed": kept,
        "figures": {name: figure["value"] for name, figure in whole["figures"].items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Many pictures, memory, and kills.")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--network", choices=NETWORKS, default="small")
    parser.add_argument("--bootstrap", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="a second waits for the first")
    parser.add_argument("--here", nargs=6, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        root, to, network, *numbers = options.here
        found = measure(Path(root), Path(to), network, *map(int, numbers))
        print(json.dumps(found))
        return
    with tempfile.TemporaryDirectory() as folder:
        found = compare(
            Path(folder),
            options.count,
            options.network,
            bootstrap=options.bootstrap,
            threads=options.threads,
        )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
