"""One trainer for one run folder."""

from contextlib import AbstractContextManager
from pathlib import Path

from opensana.errors import CheckpointError
from opensana.files.lock import held


def locked(run: Path) -> AbstractContextManager[None]:
    """Hold the run folder; a second trainer on it is refused at once."""
    run.mkdir(parents=True, exist_ok=True)
    return held(run, lambda owner: busy(run, owner))


def busy(run: Path, owner: str) -> CheckpointError:
    return CheckpointError(
        f"{run} is in use by {owner}; stop that training or choose another `run` folder"
    )
