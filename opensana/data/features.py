"""Cached latents and text states: the transformer trains without its encoders (paper 3.1).

    latents.npy         float32 [M, C, h, w], scaled as `Autoencoder.encode` gives them
    samples.jsonl       per latent: the scene, the ids and the weights of its captions
    text/states.npy     float16 [T, D], the valid states of all captions, one after the other
    text/offsets.npy    int64 [P + 1], where each caption's states begin
    text/captions.jsonl the text of each caption
    text/null.npy       float16 [n, D], the states of the null caption, whose id is -1

Both folders have a manifest with the keys of what made them. The text is a folder of its own, so
that another autoencoder can reuse it.

B batch, N tokens, D hidden size, C channels, h w latent size.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opensana.data.publish import published
from opensana.errors import DataError, near

VERSION = 1
NULL = -1
LARGEST_HALF = float(np.finfo(np.float16).max)
TEXT_KEYS = ("text_encoder", "text_encoder_hash", "instruction", "text_version")
Keys = Mapping[str, Any]


@dataclass(frozen=True)
class Sample:
    """One latent: what it shows, and which captions describe it how often."""

    scene: dict[str, Any]
    captions: tuple[int, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.captions or len(self.captions) != len(self.weights):
            raise DataError("a sample needs at least one caption, and a weight for each")
        if min(self.weights) <= 0:
            raise DataError(f"caption weights must be positive, got {self.weights}")


@dataclass(frozen=True)
class Texts:
    """The cached states of captions, memory-mapped."""

    captions: tuple[str, ...]
    states: np.ndarray
    offsets: np.ndarray
    null: np.ndarray
    keys: dict[str, Any]

    @classmethod
    def open(cls, folder: str | Path, *, expect: Keys | None = None) -> "Texts":
        """Open a text folder; DataError if a key differs from what is expected."""
        folder = Path(folder)
        keys = _manifest(folder)["keys"]
        check_keys(folder, keys, expect or {})
        lines = (folder / "captions.jsonl").read_text("utf-8").splitlines()
        texts = cls(
            captions=tuple(json.loads(line) for line in lines),
            states=np.load(folder / "states.npy", mmap_mode="r", allow_pickle=False),
            offsets=np.load(folder / "offsets.npy", allow_pickle=False),
            null=np.load(folder / "null.npy", allow_pickle=False),
            keys=keys,
        )
        if len(texts.offsets) != len(lines) + 1 or texts.offsets[-1] != len(texts.states):
            raise DataError(f"{folder} is incomplete; encode it again")
        return texts

    def of(self, caption: int) -> np.ndarray:
        """The states [n, D] of one caption; NULL is the null caption."""
        if caption == NULL:
            return self.null
        if not 0 <= caption < len(self.captions):
            raise DataError(f"caption id {caption} is not in 0..{len(self.captions) - 1}")
        return self.states[self.offsets[caption] : self.offsets[caption + 1]]

    def batch(self, captions: Sequence[int]) -> tuple[Tensor, Tensor]:
        """States [B, N, D] float32, zero behind each caption's end, and the mask [B, N]."""
        rows = [self.of(caption) for caption in captions]
        longest = max(len(row) for row in rows)
        states = torch.zeros(len(rows), longest, self.null.shape[-1])
        mask = torch.zeros(len(rows), longest, dtype=torch.bool)
        for index, row in enumerate(rows):
            states[index, : len(row)] = torch.from_numpy(row.astype(np.float32))
            mask[index, : len(row)] = True
        return states, mask


@dataclass(frozen=True)
class Features:
    """Everything the transformer's training reads."""

    latents: np.ndarray
    samples: tuple[Sample, ...]
    texts: Texts
    keys: dict[str, Any]
    latent_mean: tuple[float, ...]
    latent_std: tuple[float, ...]

    @classmethod
    def open(cls, folder: str | Path, *, expect: Keys | None = None) -> "Features":
        """Open a cache; `expect` names keys (all optional) that it must have been made with."""
        folder = Path(folder)
        manifest = _manifest(folder)
        texts = Texts.open(folder / "text")
        keys = {**manifest["keys"], **texts.keys}
        check_keys(folder, keys, expect or {})
        latents = np.load(folder / "latents.npy", mmap_mode="r", allow_pickle=False)
        lines = (folder / "samples.jsonl").read_text("utf-8").splitlines()
        if len(lines) != len(latents):
            raise DataError(f"{folder}: {len(latents)} latents but {len(lines)} samples")
        samples = tuple(_sample(json.loads(line)) for line in lines)
        mean, std = tuple(manifest["latent_mean"]), tuple(manifest["latent_std"])
        return cls(latents, samples, texts, keys, mean, std)

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        _, channels, height, width = self.latents.shape
        return channels, height, width

    @property
    def text_dim(self) -> int:
        return self.texts.null.shape[-1]

    def captions_of(self, sample: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """The ids and the weights (they sum to one) of the captions of a sample."""
        return self.samples[sample].captions, self.samples[sample].weights

    def caption(self, caption: int) -> str:
        """The text of a caption; the null caption is the empty text."""
        return "" if caption == NULL else self.texts.captions[caption]

    def batch(
        self, samples: Sequence[int], captions: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Latents [B, C, h, w], text states [B, N, D], both float32, and the mask [B, N]."""
        assert len(samples) == len(captions)
        latents = torch.from_numpy(self.latents[np.asarray(samples)].astype(np.float32))
        return latents, *self.texts.batch(captions)


class TextWriter:
    """Writes a text folder, caption by caption, and publishes it at the end."""

    def __init__(self, folder: Path, *, keys: Keys, null: np.ndarray) -> None:
        self.folder, self.keys, self.null = folder, dict(keys), null.astype(np.float16)
        self.captions: list[str] = []
        self.offsets = [0]
        self._raw = folder / "states.raw"
        self._raw.touch()

    def add(self, captions: Sequence[str], states: Iterable[np.ndarray]) -> None:
        """Append captions with their valid states [n, D]; ids count up from 0."""
        with self._raw.open("ab") as raw:
            for caption, rows in zip(captions, states, strict=True):
                self._check(caption, rows)
                raw.write(np.ascontiguousarray(rows, dtype=np.float16).tobytes())
                self.captions.append(caption)
                self.offsets.append(self.offsets[-1] + len(rows))

    def _check(self, caption: str, rows: np.ndarray) -> None:
        if rows.shape[1:] != self.null.shape[1:]:
            raise DataError(f"the states of {caption!r} are {rows.shape}, null {self.null.shape}")
        if not (np.abs(rows) <= LARGEST_HALF).all():  # false for NaN as well
            raise DataError(f"the text states of {caption!r} do not fit in float16")

    def close(self) -> None:
        shape = (self.offsets[-1], self.null.shape[-1])
        states = np.lib.format.open_memmap(self.folder / "states.npy", "w+", np.float16, shape)
        states[:] = np.memmap(self._raw, np.float16, "r", shape=shape)
        states.flush()
        self._raw.unlink()
        np.save(self.folder / "offsets.npy", np.array(self.offsets, dtype=np.int64))
        np.save(self.folder / "null.npy", self.null)
        _write_lines(self.folder / "captions.jsonl", self.captions)
        _write_manifest(self.folder, {"keys": self.keys})


@dataclass
class FeatureWriter:
    """Writes the latents and samples of a cache whose text is there already."""

    folder: Path
    keys: Keys
    _latents: list[np.ndarray] = field(default_factory=list)
    _samples: list[Sample] = field(default_factory=list)

    def add(self, latents: Tensor, samples: Sequence[Sample]) -> None:
        """Append latents [B, C, h, w] and what they show; caption weights are normalised."""
        assert len(latents) == len(samples)
        array = latents.detach().float().cpu().numpy()
        if not np.isfinite(array).all():
            raise DataError("a latent holds NaN or infinite values; is this autoencoder trained?")
        self._latents.append(array)
        self._samples += samples

    def close(self) -> None:
        latents = np.concatenate(self._latents)
        np.save(self.folder / "latents.npy", latents)
        _write_lines(self.folder / "samples.jsonl", [asdict(s) for s in self._samples])
        statistics = {
            "latent_mean": latents.mean(axis=(0, 2, 3), dtype=np.float64).tolist(),
            "latent_std": latents.std(axis=(0, 2, 3), dtype=np.float64).tolist(),
        }
        _write_manifest(self.folder, {"keys": dict(self.keys), **statistics})


@contextmanager
def write_text(folder: Path, *, keys: Keys, null: np.ndarray) -> Iterator[TextWriter]:
    """Write a text folder; it appears as a whole, or not at all."""
    unknown = set(keys) ^ set(TEXT_KEYS)
    assert not unknown, f"text keys differ: {unknown}"
    with published(folder) as temporary:
        writer = TextWriter(temporary, keys=keys, null=null)
        yield writer
        writer.close()


@contextmanager
def write_features(to: Path, *, keys: Keys, text: Path) -> Iterator[FeatureWriter]:
    """Write a cache with a copy of the text folder; it appears as a whole, or not at all."""
    with published(to) as temporary:
        writer = FeatureWriter(temporary, keys)
        yield writer
        writer.close()
        shutil.copytree(text, temporary / "text")


def check_keys(folder: Path, keys: Keys, expect: Keys) -> None:
    """DataError that names the first key with another value than expected."""
    for name, wanted in expect.items():
        if name not in keys:
            raise DataError(f"{folder} has no key {name!r}{near(name, keys)}")
        if keys[name] != wanted:
            raise DataError(
                f"{folder} is stale: its {name} is {keys[name]!r}, expected {wanted!r}; encode it "
                "again with recipes/emoji/encode.py"
            )


def tensor_hash(tensors: Mapping[str, Tensor], *, prefix: str = "") -> str:
    """SHA-256 over the names, types, shapes and bytes of the tensors below a prefix.

    With the prefix "encoder." a better decoder leaves cached latents valid.
    """
    digest = hashlib.sha256()
    for name in sorted(name for name in tensors if name.startswith(prefix)):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _sample(values: Mapping[str, Any]) -> Sample:
    weights = np.asarray(values["weights"], dtype=np.float64)
    normal = tuple(float(weight) for weight in weights / weights.sum())
    return Sample(dict(values["scene"]), tuple(values["captions"]), normal)


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    if not path.exists():
        raise DataError(f"{folder} is not a feature cache; make it with recipes/emoji/encode.py")
    manifest = json.loads(path.read_text("utf-8"))
    if manifest.get("version") != VERSION:
        found = manifest.get("version")
        raise DataError(f"{folder} is stale: its version is {found}, expected {VERSION}")
    return manifest


def _write_manifest(folder: Path, values: Mapping[str, Any]) -> None:
    text = json.dumps({"version": VERSION, **values}, indent=2) + "\n"
    (folder / "manifest.json").write_text(text, "utf-8")


def _write_lines(path: Path, values: Iterable[Any]) -> None:
    lines = (json.dumps(value, ensure_ascii=False) + "\n" for value in values)
    path.write_text("".join(lines), "utf-8")
