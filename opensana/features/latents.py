"""Cached latents and text states: the transformer trains without its encoders (paper 3.1).

    latents-HxW.npy       float16 [M, C, H, W], scaled as `Autoencoder.encode` gives them: one file
                          for each shape of latents, which is an aspect bucket
    places.npy            int32 [S, 2], of each sample the number of its bucket and its row there
    samples.jsonl         of each sample its key, and its captions with scores and captioners;
                          samples-offsets.npy says where its line begins
    rejects.jsonl         what of the source was left out, and why
    text/                 the text states (texts.py)
    manifest.json         what made them, the buckets in order, statistics

Arrays are mapped and lines read one by one, so that millions of samples open at once. float16
rounds a latent by at most one part in 2048, far less than the autoencoder loses, and halves disk
and traffic.

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
    """One latent: what it shows, and the captions that describe it.

    `scores` are as in `record.Caption`, None where nobody scored; `captioners` say who wrote.
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
    """Everything the transformer's training reads."""

    latents: tuple[np.ndarray, ...]
    places: np.ndarray
    samples: Lines
    texts: Texts
    keys: dict[str, Any]
    latent_mean: tuple[float, ...]
    latent_std: tuple[float, ...]

    @classmethod
    def open(cls, folder: str | Path, *, expect: Keys | None = None) -> "Features":
        """Open a cache; `expect` names keys (all optional) that it must have been made with."""
        folder = Path(folder)
        manifest = read_manifest(folder)
        texts = Texts.open(folder / "text")
        keys = {**manifest["keys"], **texts.keys}
        check_keys(folder, keys, expect or {})
        features = cls(
            latents=tuple(_mapped(folder / _latents(name)) for name in manifest["buckets"]),
            places=np.load(folder / "places.npy", allow_pickle=False),
            samples=Lines(folder, "samples"),
            texts=texts,
            keys=keys,
            latent_mean=tuple(manifest["latent_mean"]),
            latent_std=tuple(manifest["latent_std"]),
        )
        counts = {sum(len(part) for part in features.latents), len(features.samples)}
        if counts != {len(features.places)}:
            raise DataError(f"{folder} is incomplete; encode it again")
        return features

    def __len__(self) -> int:
        return len(self.places)

    @property
    def buckets(self) -> np.ndarray:
        """The number of each sample's bucket [S]; latents of one bucket have one shape."""
        return self.places[:, 0]

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """The shape C, h, w of the bucket with most samples."""
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
        bucket, row = self.places[sample]
        return self.latents[bucket][row]

    def caption(self, caption: int) -> str:
        """The text of a caption; the null caption is the empty text."""
        return "" if caption == NULL else self.texts.captions[caption]

    def batch(
        self, samples: Sequence[int], captions: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Latents [B, C, h, w], text states [B, N, D], both float32, and the mask [B, N].

        The samples must be of one bucket.
        """
        assert len(samples) == len(captions)
        buckets, rows = self.places[np.asarray(samples)].T
        if (buckets != buckets[0]).any():
            raise DataError(f"samples of several buckets make no batch: {sorted(set(buckets))}")
        latents = torch.from_numpy(self.latents[buckets[0]][rows].astype(np.float32))
        return latents, *self.texts.batch(captions)


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
        """Append latents [B, C, h, w] of one shape, and what they show."""
        array = np.asarray(latents.detach().float().cpu() if torch.is_tensor(latents) else latents)
        assert len(array) == len(samples)
        if not np.isfinite(array).all():
            raise DataError("a latent holds NaN or infinite values; is this autoencoder trained?")
        if np.abs(array).max() > LARGEST_HALF:
            raise DataError("a latent does not fit in float16; is its scaling_factor measured?")
        bucket = self._bucket("x".join(map(str, array.shape[2:])))
        name = _latents(self._state["buckets"][bucket])
        rows = self.files.rows(name) + np.arange(len(array))
        places = np.stack([np.full_like(rows, bucket), rows], axis=1)
        self.files.append(name, array.astype(np.float16))
        self.files.append("places.npy", places.astype(np.int32))
        self.files.append_lines("samples", [asdict(sample) for sample in samples])
        self._count(array.astype(np.float64))

    def _bucket(self, name: str) -> int:
        known = self._state["buckets"]
        if name not in known:
            known.append(name)
        return known.index(name)

    def _count(self, latents: np.ndarray) -> None:
        state, axes = self._state, (0, 2, 3)
        state["positions"] += latents.size // latents.shape[1]
        state["sum"] = (state["sum"] + latents.sum(axis=axes)).tolist()
        state["squares"] = (state["squares"] + np.square(latents).sum(axis=axes)).tolist()

    def close(self) -> None:
        """Write the manifest; the files must be finished as well."""
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
    """Write a cache with a copy of the text folder; it appears as a whole, or not at all."""
    with atomic_folder(to) as temporary, closing(GrowingFiles(temporary)) as files:
        writer = FeatureWriter(files, keys=keys)
        yield writer
        files.finish()
        writer.close()
        shutil.copytree(text, temporary / "text")
        (temporary / JOURNAL).unlink()


def _latents(bucket: str) -> str:
    return f"latents-{bucket}.npy"


def _mapped(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _shape(latents: np.ndarray) -> tuple[int, int, int]:
    _, channels, height, width = latents.shape
    return channels, height, width
