"""Features of many pictures, kept in files that grow: a stopped run goes on where it was.

B pictures, D features.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from opensana.errors import DataError, NumericsError
from opensana.evaluate.benchmark.pictures import Pictures
from opensana.evaluate.benchmark.protocol import Prepare
from opensana.files.growing import GrowingFiles
from opensana.metrics.clip_score import ClipScorer
from opensana.metrics.inception import Inception, for_inference
from opensana.metrics.small_clip_score import SmallClipScorer
from opensana.workers.progress import Report
from opensana.workers.threads import in_order

Extract = Callable[[Sequence[np.ndarray]], np.ndarray]
"""Pictures uint8 [H, W, 3] of any sizes to features float32 [B, D]."""
READERS = 4
COMMITTED = 4
"""Batches between commits: what is lost at most when a run is killed."""


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


def clip_features(scorer: ClipScorer | SmallClipScorer) -> Extract:
    """Unit embeddings of a CLIP."""

    def extract(pictures: Sequence[np.ndarray]) -> np.ndarray:
        images = [Image.fromarray(picture) for picture in pictures]
        return scorer.embed_images(images).float().cpu().numpy()

    return extract


def extract_all(
    folder: Path,
    pictures: Pictures,
    extractors: Mapping[str, Extract],
    *,
    batch: int,
    report: Report,
) -> dict[str, np.ndarray]:
    """The features of all pictures, memory-mapped, by extractor; what is there is not computed.

    Batches begin at multiples of `batch`, so that a resumed run computes the same numbers.
    """
    files, total = GrowingFiles(folder), len(pictures)
    names = {name: f"{name}.npy" for name in extractors}
    try:
        done = min(files.rows(file) for file in names.values())
        if done > total or (done % batch and done < total):
            raise DataError(f"{folder} was begun with other pictures or another batch; delete it")
        starts = range(done, total, batch)
        load = partial(_load, pictures, batch)
        for number, loaded in enumerate(in_order(load, starts, workers=READERS, ahead=2), 1):
            for name, extract in extractors.items():
                features = extract(loaded)
                if not np.isfinite(features).all():
                    raise NumericsError(f"{name} gave NaN or infinite features of {pictures.where}")
                files.append(names[name], features.astype(np.float32))
            done += len(loaded)
            if not number % COMMITTED:
                files.commit()
            report(done, total)
        files.finish()
    finally:
        files.close()
    return {
        name: np.load(folder / file, mmap_mode="r", allow_pickle=False)
        for name, file in names.items()
    }


def _load(pictures: Pictures, batch: int, start: int) -> list[np.ndarray]:
    return [pictures.read(row) for row in range(start, min(start + batch, len(pictures)))]
