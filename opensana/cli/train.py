"""`opensana train`: one complete recipe; the same command goes on after an interruption."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, UseAppendAction, arg

from opensana.cli.command import Command


@dataclass(frozen=True)
class Train(Command):
    """Train an autoencoder or a transformer; the same command resumes."""

    recipe: Annotated[Positional[Path], arg(metavar="RECIPE")]
    """A TOML file; those in recipes/ say what they reproduce."""
    overrides: Annotated[
        UseAppendAction[tuple[str, ...]], arg(name="set", metavar="NAME=VALUE")
    ] = ()
    """Change a value of the recipe, as in --set optimizer.lr=1e-4."""

    def run(self) -> None:
        from opensana.train import run

        run(self.recipe, self.overrides)
