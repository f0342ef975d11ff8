"""Cached latents and prompt embeddings, to train the transformer without its encoders.

    latents-HxW.npy       float16 [M, C, H, W], scaled as by `Autoencoder.encode`, one file for
                          each shape of latents, that is for each aspect-ratio bucket
    places.npy            int32 [S, 2], the index: each sample's bucket and its row there
    samples.jsonl         each sample's key, and its captions with scores and captioners;
                          samples-offsets.npy has the start of each line
    rejects.jsonl         what was left out of the source, and why
    text/                 the prompt embeddings (texts.py)
    manifest.json         the keys of the encoders, the buckets in order, statistics

Arrays are memory-mapped and lines are read one by one, so millions of samples open at once. float16
rounds a latent by at most one part in 2048, far less than the autoencoder's error, and halves disk
space and traffic.

B batch, N tokens, D hidden size, C channels, h w latent size.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opensana.errors import DataError
from opensana.features.manifest import Keys, check_keys, read_manifest, write_manifest
from opensana.features.texts import LARGEST_HALF, NULL, Texts
from opensana.files.growing import JOURNAL, GrowingFiles, Lines
from opensana.files.writing import atomic_folder


@dataclass(frozen=True)
class Sample:
    """The sample of a latent: its key and the ids of its captions.

    `scores` are CLIP scores as in `record.Caption`, or None; `captioners` wrote the captions.
    """

    key: str
    captions: tuple[int, ...]
    scores: tuple[float | None, ...]
    captioners: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.captions or len(self.captions) != len(self.scores):
            raise DataError("a sample needs at least one caption, and a score or None for each")
        if not np.isfinite([score for score in self.scores if score is not None]).all():
            raise DataError(f"caption scores must be finite numbers, got {self.scores}")


@dataclass(frozen=True)
class Features:
    """Everything that the transformer's training reads."""

    latents: tuple[np.ndarray, ...]
    index: np.ndarray
    samples: Lines
    texts: Texts
    keys: dict[str, Any]
    latent_mean: tuple[float, ...]
    latent_std: tuple[float, ...]

    @classmethod
    def open(cls, folder: str | Path, *, expect: Keys | None = None) -> "Features":
        """Open a cache; DataError if one of its keys differs from `expect`."""
        folder = Path(folder)
        manifest = read_manifest(folder)
        texts = Texts.open(folder / "text")
        keys = {**manifest["keys"], **texts.keys}
        check_keys(folder, keys, expect or {})
        features = cls(
            latents=tuple(
                np.load(folder / _latents(name), mmap_mode="r", allow_pickle=False)
                for name in manifest["buckets"]
            ),
            index=np.load(folder / "places.npy", allow_pickle=False),
            samples=Lines(folder, "samples"),
            texts=texts,
            keys=keys,
            latent_mean=tuple(manifest["latent_mean"]),
            latent_std=tuple(manifest["latent_std"]),
        )
        counts = {sum(len(part) for part in features.latents), len(features.samples)}
        if counts != {len(features.index)}:
            raise DataError(f"{folder} is incomplete; encode it again")
        return features

    def __len__(self) -> int:
        return len(self.index)

    @property
    def buckets(self) -> np.ndarray:
        """Each sample's bucket [S]; latents of a bucket have the same shape."""
        return self.index[:, 0]

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """The shape C, h, w of the largest bucket."""
        return _shape(max(self.latents, key=len))

    def shape_of(self, sample: int) -> tuple[int, int, int]:
        """The shape C, h, w of a sample's latent."""
        return _shape(self.latents[self.buckets[sample]])

    @property
    def text_dim(self) -> int:
        return self.texts.null.shape[-1]

    def sample(self, sample: int) -> Sample:
        """The key and the captions of a sample."""
        line = self.samples[sample]
        parts = (tuple(line[name]) for name in ("captions", "scores", "captioners"))
        return Sample(line["key"], *parts)

    def latent(self, sample: int) -> np.ndarray:
        """The latent [C, h, w] of a sample, float16."""
        bucket, row = self.index[sample]
        return self.latents[bucket][row]

    def caption(self, caption: int) -> str:
        """The text of a caption; the null caption is the empty text."""
        return "" if caption == NULL else self.texts.captions[caption]

    def batch(
        self,
        samples: Sequence[int],
        captions: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Latents [B, C, h, w], prompt embeddings [B, N, D], both in `dtype`, and the mask [B, N].

        The samples must be in one bucket. float16 is exact: they are stored so.
        """
        assert len(samples) == len(captions)
        buckets, rows = self.index[np.asarray(samples)].T
        if (buckets != buckets[0]).any():
            raise DataError(f"samples of several buckets make no batch: {sorted(set(buckets))}")
        latents = torch.from_numpy(self.latents[buckets[0]][rows]).to(dtype)
        return latents, *self.texts.batch(captions, dtype=dtype)


class FeatureWriter:
    """Writes the latents and samples of a cache into growing files."""

    def __init__(self, files: GrowingFiles, *, keys: Keys) -> None:
        self.files, self.keys = files, dict(keys)
        self._state = files.state.setdefault(
            "latents", {"buckets": [], "positions": 0, "sum": 0.0, "squares": 0.0}
        )

    def __len__(self) -> int:
        return self.files.rows("places.npy")

    def add(self, latents: Tensor | np.ndarray, samples: Sequence[Sample]) -> None:
        """Append latents [B, C, h, w] of one shape, and their samples."""
        array = np.asarray(latents.detach().float().cpu() if torch.is_tensor(latents) else latents)
        assert len(array) == len(samples)
        if not np.isfinite(array).all():
            raise DataError("a latent holds NaN or infinite values; is this autoencoder trained?")
        if np.abs(array).max() > LARGEST_HALF:
            raise DataError("a latent does not fit in float16; is its scaling_factor measured?")
        state, bucket = self._state, "x".join(map(str, array.shape[2:]))
        if bucket not in state["buckets"]:
            state["buckets"].append(bucket)
        name = _latents(bucket)
        rows = self.files.rows(name) + np.arange(len(array))
        index = np.stack([np.full_like(rows, state["buckets"].index(bucket)), rows], axis=1)
        self.files.append(name, array.astype(np.float16))
        self.files.append("places.npy", index.astype(np.int32))
        self.files.append_lines("samples", [asdict(sample) for sample in samples])
        # Sums for the mean and the std of each channel.
        exact, axes = array.astype(np.float64), (0, 2, 3)
        state["positions"] += exact.size // exact.shape[1]
        state["sum"] = (state["sum"] + exact.sum(axis=axes)).tolist()
        state["squares"] = (state["squares"] + np.square(exact).sum(axis=axes)).tolist()

    def close(self) -> None:
        """Write the manifest; `files.finish` is up to the caller."""
        if not len(self):
            raise DataError(f"nothing was added to {self.files.folder}; no cache is made")
        state = self._state
        mean = np.array(state["sum"]) / state["positions"]
        variance = np.array(state["squares"]) / state["positions"] - mean**2
        statistics = {
            "latent_mean": mean.tolist(),
            "latent_std": np.sqrt(variance.clip(0)).tolist(),
        }
        manifest = {"keys": self.keys, "buckets": state["buckets"], **statistics}
        write_manifest(self.files.folder, manifest)


@contextmanager
def write_features(to: Path, *, keys: Keys, text: Path) -> Iterator[FeatureWriter]:
    """Write a cache with a copy of the text folder, atomically."""
    with atomic_folder(to) as temporary, closing(GrowingFiles(temporary)) as files:
        writer = FeatureWriter(files, keys=keys)
        yield writer
        files.finish()
        writer.close()
        shutil.copytree(text, temporary / "text")
        (temporary / JOURNAL).unlink()


def _latents(bucket: str) -> str:
    return f"latents-{bucket}.npy"


def _shape(latents: np.ndarray) -> tuple[int, int, int]:
    _, channels, height, width = latents.shape
    return channels, height, width
