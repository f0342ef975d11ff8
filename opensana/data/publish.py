"""Folders that appear as a whole, or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def published(to: str | Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `to` when the block ends without an error."""
    to = Path(to)
    to.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".partial-", dir=to.parent))
    old = folder.with_name(folder.name + "-old")
    try:
        yield folder
        folder.chmod(0o755)
        if to.exists():
            os.replace(to, old)
        os.replace(folder, to)
    finally:
        if old.exists() and not to.exists():
            os.replace(old, to)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
