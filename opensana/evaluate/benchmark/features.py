"""Features of many pictures, computed in one process or in several.

B pictures, D features.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from opensana.errors import DataError
from opensana.evaluate.benchmark.judges import Judges, Scorer
from opensana.evaluate.benchmark.pictures import Pictures
from opensana.evaluate.benchmark.protocol import Prepare
from opensana.evaluate.rows import kept_rows
from opensana.metrics.inception import Inception, for_inference
from opensana.workers.progress import progress

Extract = Callable[[Sequence[np.ndarray]], np.ndarray]
"""Pictures uint8 [H, W, 3] of any sizes to features float32 [B, D]."""
Part = tuple[int, int]
"""Which process it is, from 1 on, of how many."""
PARTS = "parts"


def inception_features(
    network: Inception, prepare: Prepare, size: int, device: torch.device
) -> Extract:
    """Features of FID and its kin."""
    network = for_inference(network).to(device)

    @torch.inference_mode()
    def extract(pictures: Sequence[np.ndarray]) -> np.ndarray:
        inputs = torch.stack([prepare(picture, size) for picture in pictures])
        return network(inputs.to(device)).float().cpu().numpy()

    return extract


def clip_features(scorer: Scorer) -> Extract:
    """Unit embeddings of a CLIP."""

    def extract(pictures: Sequence[np.ndarray]) -> np.ndarray:
        images = [Image.fromarray(picture) for picture in pictures]
        return scorer.embed_images(images).float().cpu().numpy()

    return extract


def extractors(
    judges: Judges, prepare: Prepare, size: int, device: torch.device
) -> dict[str, Extract]:
    """Of the networks that there are."""
    found: dict[str, Extract] = {}
    if judges.inception is not None:
        found["inception"] = inception_features(judges.inception, prepare, size, device)
    if judges.clip is not None:
        found["clip"] = clip_features(judges.clip)
    return found


def rows_of(part: Part, total: int) -> range:
    """The pictures that a process draws and sees: every n-th."""
    return range(part[0] - 1, total, part[1])


@dataclass(frozen=True)
class Seeing:
    """Pictures to features, memory-mapped, which are kept in the run's folder."""

    folder: Path
    extractors: Mapping[str, Extract]
    batch: int

    def part(self, name: str, pictures: Pictures, part: Part) -> dict[str, np.ndarray]:
        """The features of every n-th picture."""
        own = pictures.at(rows_of(part, len(pictures)))
        return self._extract(self.folder / PARTS / f"{part[0]}-of-{part[1]}" / name, own)

    def all(self, name: str, pictures: Pictures) -> dict[str, np.ndarray]:
        """The features of all; those of several processes are joined, and what lacks is made."""
        counts = {path.name.rpartition("-")[2] for path in (self.folder / PARTS).glob("*-of-*")}
        if len(counts) > 1:
            raise DataError(
                f"{self.folder / PARTS} has parts of {' and of '.join(sorted(counts))}; delete it"
            )
        if not counts:
            return self._extract(self.folder / name, pictures)
        count = int(counts.pop())
        parts = [self.part(name, pictures, (k, count)) for k in range(1, count + 1)]
        return self._join(self.folder / name, parts, len(pictures))

    def _extract(self, folder: Path, pictures: Pictures) -> dict[str, np.ndarray]:
        def load(rows: range) -> list[np.ndarray]:
            return [pictures.read(row) for row in rows]

        def compute(loaded: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
            return {name: extract(loaded) for name, extract in self.extractors.items()}

        return kept_rows(
            folder,
            list(self.extractors),
            len(pictures),
            load=load,
            compute=compute,
            batch=self.batch,
            report=progress(f"pictures of {pictures.where} seen"),
        )

    def _join(
        self, folder: Path, parts: Sequence[Mapping[str, np.ndarray]], total: int
    ) -> dict[str, np.ndarray]:
        names = list(self.extractors)

        def together(rows: range) -> dict[str, np.ndarray]:
            where = [divmod(row, len(parts)) for row in rows]
            return {name: np.stack([parts[k][name][row] for row, k in where]) for name in names}

        return kept_rows(
            folder,
            names,
            total,
            load=together,
            compute=lambda found: found,
            batch=self.batch,
            report=progress("pictures joined"),
        )
