"""`opensana train`: one complete recipe; the same command goes on after an interruption."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, UseAppendAction, arg

from opensana.cli.command import Command
from opensana.errors import RequestError


@dataclass(frozen=True)
class Train(Command):
    """Train an autoencoder or a transformer; the same command resumes."""

    recipe: Annotated[Positional[Path], arg(metavar="RECIPE")]
    """A TOML file; those in recipes/ say what they reproduce."""
    overrides: Annotated[
        UseAppendAction[tuple[str, ...]], arg(name="set", metavar="NAME=VALUE")
    ] = ()
    """Change a value of the recipe, as in --set optimizer.lr=1e-4."""
    dry_run: bool = False
    """Print the numbers that follow from the recipe: memory, speed, rates, disk; train nothing."""
    processes: Annotated[int | None, arg(metavar="N")] = None
    """With --dry-run: as if started by torchrun with so many processes."""

    def run(self) -> None:
        from opensana.train import run

        if self.dry_run:
            from opensana.train.dry_run import dry_run

            print(dry_run(self.recipe, self.overrides, processes=self.processes or 1))
        elif self.processes is not None:
            raise RequestError(
                "--processes belongs to --dry-run; to train in several, start with torchrun"
            )
        else:
            run(self.recipe, self.overrides)
