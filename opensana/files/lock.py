"""Lock a folder for one process."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def held(folder: Path, busy: Callable[[str], Exception]) -> Iterator[None]:
    """Hold the lock of a folder; if another process has it, raise `busy(its name)`."""
    import fcntl

    with (folder / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise busy(lock.read().strip() or "another process") from error
        lock.truncate(0)
        lock.write(f"process {os.getpid()}")
        lock.flush()
        yield
