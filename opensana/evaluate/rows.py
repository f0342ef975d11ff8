"""Numbers of many pictures in files that grow: a stopped run goes on where it was.

B pictures of a batch.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from opensana.errors import DataError, NumericsError
from opensana.files.growing import GrowingFiles
from opensana.workers.progress import Report
from opensana.workers.threads import in_order

Loaded = TypeVar("Loaded")
READERS = 4
COMMITTED = 4
"""Batches between commits: what is lost at most when a run is killed."""


def kept_rows(
    folder: Path,
    names: Sequence[str],
    total: int,
    *,
    load: Callable[[range], Loaded],
    compute: Callable[[Loaded], Mapping[str, np.ndarray]],
    batch: int,
    report: Report,
) -> dict[str, np.ndarray]:
    """Float32 arrays [total, ...] by name, memory-mapped; what is there is not computed again.

    `load` reads the pictures of a batch, in threads ahead, and `compute` gives rows [B, ...] for
    each name. Batches begin at multiples of `batch`, so that a resumed run has the same numbers.
    """
    if not names:
        return {}
    files, paths = GrowingFiles(folder), {name: f"{name}.npy" for name in names}
    try:
        done = min(files.rows(path) for path in paths.values())
        if done > total or (done % batch and done < total):
            raise DataError(f"{folder} was begun with other pictures or another batch; delete it")
        batches = (range(row, min(row + batch, total)) for row in range(done, total, batch))
        for number, loaded in enumerate(in_order(load, batches, workers=READERS, ahead=2), 1):
            found = compute(loaded)
            for name, path in paths.items():
                if not np.isfinite(found[name]).all():
                    raise NumericsError(f"{name} gave NaN or infinite numbers for {folder}")
                files.append(path, found[name].astype(np.float32))
            done = min(done + batch, total)
            if not number % COMMITTED:
                files.commit()
            report(done, total)
        files.finish()
    finally:
        files.close()
    return {
        name: np.load(folder / path, mmap_mode="r", allow_pickle=False)
        for name, path in paths.items()
    }
