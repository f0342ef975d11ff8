"""One trainer for one run folder."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from opensana.errors import CheckpointError


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
