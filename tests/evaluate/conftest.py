"""A small emoji set in memory: plain squares of different colours."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from opensana.datasets.emoji.captions import Caption
from opensana.datasets.emoji.compose import SIZE
from opensana.datasets.emoji.dataset import EmojiData, Record

COLOURS = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (200, 200, 30), (30, 200, 200)]


def record(index: int, **changes: object) -> Record:
    captions = (Caption("label", f"thing {index}"), Caption("github", f"name {index}", True))
    values: dict[str, object] = {
        "index": index,
        "hexcode": f"1F{index}",
        "label": f"thing {index}",
        "tags": (),
        "keywords": (),
        "shortcodes": {},
        "group": "g",
        "subgroup": "s",
        "family": f"F{index}",
        "captions": captions,
        "split": "train",
        "vocabulary": True,
    }
    return Record(**(values | changes))  # type: ignore[arg-type]


@pytest.fixture
def data() -> EmojiData:
    generator = np.random.default_rng(0)
    pictures = np.zeros((len(COLOURS) + 1, SIZE, SIZE, 4), dtype=np.uint8)
    for index, colour in enumerate(COLOURS):
        pictures[index, 40:200, 40:200] = (*colour, 255)
    pictures[-1, ..., :3] = generator.integers(0, 256, (SIZE, SIZE, 3))
    pictures[-1, ..., 3] = 255
    records = [record(index) for index in range(len(COLOURS))]
    records.append(record(len(COLOURS), split="held_out", vocabulary=False))
    return EmojiData(Path("nowhere"), pictures, tuple(records), {})


@pytest.fixture
def crowd() -> EmojiData:
    """Enough emoji for pairs: squares of coloured tiles, the last one up to the edge."""
    generator = np.random.default_rng(0)
    pictures = np.zeros((16, SIZE, SIZE, 4), dtype=np.uint8)
    for picture in pictures:
        tiles = generator.integers(0, 256, (4, 4, 3)).repeat(48, axis=0).repeat(48, axis=1)
        picture[32:224, 32:224, :3] = tiles
        picture[32:224, 32:224, 3] = 255
    pictures[-1, 0, 100] = 255
    records = tuple(record(index) for index in range(len(pictures)))
    return EmojiData(Path("nowhere"), pictures, records, {})


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors: a second thread only waits where the processors are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
