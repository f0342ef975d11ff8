"""A small vocabulary for scenes."""

from pathlib import Path

import numpy as np

from opensana.datasets.emoji.captions import Caption
from opensana.datasets.emoji.compose import SIZE
from opensana.datasets.emoji.dataset import EmojiData, Record
from opensana.datasets.emoji.languages import LANGUAGES

LABELS = (
    "red apple", "lemon", "dog face", "goose", "grapes", "cup of tea", "leaf", "mouse face",
    "blue book", "rocket", "black cat", "cat face", "fox", "whale", "tree", "ball", "drum", "key",
    "box", "bus",
)  # fmt: skip


def small_vocabulary() -> EmojiData:
    """Twenty kinds: discs of one colour, the last one of two, the one before it grey."""
    dice = np.random.default_rng(0)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    pictures = np.zeros((len(LABELS), SIZE, SIZE, 4), np.uint8)
    for index, picture in enumerate(pictures):
        colour = dice.integers(30, 226, 3)
        colour[index % 3] = (250, 20, 120)[index % 2]
        side = 70 + 2 * index
        inside = (np.abs(rows - 128) < side) & (np.abs(columns - 128) < 190 - side)
        picture[inside] = (*colour, 255)
        picture[inside & (rows < 90)] = (*(colour // 2 + 60), 255)
    pictures[-1, :, : SIZE // 2, :3] = (20, 60, 240)
    pictures[-1, :, SIZE // 2 :, :3] = (240, 220, 30)
    pictures[-2][pictures[-2][..., 3] > 0] = (150, 150, 155, 255)
    languages = {
        name: {f"1F{i:02}": [f"{name} {i}", f"tag {i}", "shared"] for i in range(len(LABELS))}
        for name in LANGUAGES
    }
    languages["emoji"] = {f"1F{i:02}": [chr(0x1F300 + i)] for i in range(len(LABELS))}
    data = EmojiData(Path("nowhere"), pictures, tuple(map(_record, range(len(LABELS)))), {})
    data.__dict__["languages"] = languages
    return data


def _record(index: int) -> Record:
    label = LABELS[index]
    captions = [Caption("label", label), Caption("label+tags", f"{label}, thing")]
    if label.endswith(" face"):
        captions.append(Caption("github", label.removesuffix(" face")))
    captions.append(Caption("joypixels", f"secret {index}", True))
    return Record(
        index=index, hexcode=f"1F{index:02}", label=label, tags=(), keywords=(), shortcodes={},
        group="g", subgroup="s", family=f"F{index}", captions=tuple(captions), split="train",
        vocabulary=True,
    )  # fmt: skip
