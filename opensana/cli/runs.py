"""`opensana runs`: what the trainings in a folder have come to, and their curves."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from opensana.cli.command import Command, aligned, emit, emit_json, say
from opensana.errors import RequestError

if TYPE_CHECKING:
    from opensana.train.monitor.runs import Run

HEAD = ("run", "kind", "state", "step", "loss", "samples/s", "checkpoint")


@dataclass(frozen=True)
class Runs(Command):
    """List training runs: how far, how fast, finished or not; and draw their curves."""

    folder: Annotated[Positional[Path], arg(metavar="FOLDER")] = Path("runs")
    """A run, or a folder that holds some."""
    plot: Annotated[Path | None, arg(metavar="FILE")] = None
    """Write a PNG with a curve for every run here."""
    metric: Annotated[str | None, arg(metavar="NAME")] = None
    """What to draw: a name in metrics.jsonl, such as psnr_train; left out, loss."""
    log: bool = False
    """Draw it on a logarithmic axis."""
    json: bool = False
    """Print one JSON object a run."""

    def run(self) -> None:
        from opensana.train.monitor.runs import list_runs

        if self.plot is None and (self.metric is not None or self.log):
            raise RequestError("--metric and --log say how to draw; give --plot FILE as well")
        runs = list_runs(self.folder)
        if self.json:
            for one in runs:
                emit_json(asdict(one))
        else:
            emit("\n".join(aligned([HEAD, *map(_cells, runs)])))
        for one in runs:
            if one.problem:
                say(f"{one.folder}: {one.problem}")
        if self.plot is not None:
            self._draw(runs, self.plot)

    def _draw(self, runs: "Sequence[Run]", path: Path) -> None:
        from opensana.train.monitor.plot import plot
        from opensana.train.monitor.runs import series

        metric = self.metric or "loss"
        curves = series(runs, metric)
        for one in runs:
            if one.folder not in curves:
                say(f"{one.folder} has no {metric}")
        plot(path, curves, label=metric, log=self.log)
        say(f"drew {metric} to {path}")


def _cells(run: "Run") -> list[object]:
    step = f"{run.step:,}" if run.steps is None else f"{run.step:,}/{run.steps:,}"
    speed = run.samples_per_second
    return [run.folder, run.kind, run.state, step, run.loss, speed, run.checkpoint]
