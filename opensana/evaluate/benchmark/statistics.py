"""Mean and covariance of Inception features in the files that others use: npz of `mu` and `sigma`.

D features.
"""

import zipfile
from pathlib import Path

import numpy as np
import torch

from opensana.errors import DataError
from opensana.files.writing import write_atomic
from opensana.metrics.frechet import Gaussian, Moments

CHUNK = 2048
MOST_BYTES = 1 << 30


def moments_of(features: np.ndarray, counts: np.ndarray | None = None) -> Moments:
    """Of features [N, D], perhaps memory-mapped; with `counts` [N], each as often as it says."""
    moments = Moments()
    for start in range(0, len(features), CHUNK):
        part = slice(start, start + CHUNK)
        rows = torch.from_numpy(np.array(features[part]))
        moments.add(rows, None if counts is None else torch.from_numpy(counts[part]))
    return moments


def write_statistics(path: str | Path, moments: Moments | Gaussian) -> None:
    """Write `mu` [D] and `sigma` [D, D] in float64, uncompressed."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as stream:
            np.savez(stream, mu=moments.mean.numpy(), sigma=moments.covariance.numpy())

    write_atomic(path, write)


def read_statistics(path: str | Path) -> Gaussian:
    """DataError unless the file holds a mean and its covariance; nothing in it is unpickled."""
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > MOST_BYTES:
                raise DataError(f"{path} unpacks to more than {MOST_BYTES:,} bytes")
        with np.load(path, allow_pickle=False) as file:
            mean, covariance = (np.asarray(file[name]) for name in ("mu", "sigma"))
    except KeyError:
        raise DataError(f"{path} lacks mu or sigma: statistics of pytorch-fid have both") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read as npz statistics ({error})") from None
    size = mean.shape[0] if mean.ndim == 1 else -1
    if covariance.shape != (size, size) or mean.dtype.kind != "f" or covariance.dtype.kind != "f":
        raise DataError(
            f"{path} has mu {mean.shape} and sigma {covariance.shape}; expected [D] and [D, D]"
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise DataError(f"{path} holds NaN or infinite numbers")
    return Gaussian(torch.from_numpy(mean).double(), torch.from_numpy(covariance).double())
