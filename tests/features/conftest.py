"""A small data set in memory, and tiny encoders."""

import io
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from PIL import Image

from opensana.datasets.record import Caption, Record, Reject
from opensana.errors import DataError
from opensana.features.encoders import Encoders
from tests import tiny

SIZES = [(64, 64), (128, 32), (90, 70), (40, 120), (33, 33), (32, 128), (100, 100)]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tiny layers gain nothing from more, and other work on the machine disturbs them less."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class PaintedSource:
    """Noise pictures of several shapes, two captions each; those in `bad` are none."""

    def __init__(self, count: int = 30, *, bad: Sequence[int] = (), rejects: int = 0) -> None:
        self.count, self.bad = count, set(bad)
        self.rejects = [Reject(f"r{index}", "is a GIF") for index in range(rejects)]

    def __len__(self) -> int:
        return self.count

    def record(self, index: int) -> Record:
        width, height = SIZES[index % len(SIZES)]
        captions = (
            Caption(f"picture {index}"),
            Caption(f"é{index % 3}", captioner="vlm", score=25.0 + index),
        )
        return Record(f"k{index}", width, height, captions)

    def picture(self, index: int) -> bytes:
        if index in self.bad:
            return b"no picture"
        width, height = SIZES[index % len(SIZES)]
        shape = (height, width, 3)
        pixels = np.random.default_rng(index).integers(0, 256, shape, np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="PNG")
        return buffer.getvalue()


def decode(picture: bytes) -> np.ndarray:
    try:
        return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))
    except OSError:
        raise DataError("is damaged") from None


@pytest.fixture(scope="session")
def encoders() -> Encoders:
    sana = tiny.sana(instruction="none")
    return Encoders(sana.autoencoder, sana.text, "tiny", "none", 300)
