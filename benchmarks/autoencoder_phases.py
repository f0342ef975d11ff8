"""What the decoder's third phase changes, on white, on plain colours and on busy backgrounds.

    python -m benchmarks.autoencoder_phases NAME=FOLDER NAME=FOLDER ... [--strip FILE]

For each autoencoder the PSNR and SSIM of held-out emoji, and the Fréchet distance of the small
CLIP's features, of pictures made small as it knows them and of 64-pixel crops, which show edges.
Needs data/emoji. The last line is JSON.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from opensana.autoencoder import Autoencoder
from opensana.datasets.emoji.compose import COLOURS, SIZE, Scene, compose
from opensana.datasets.emoji.dataset import EmojiData
from opensana.evaluate.emoji.reconstruction import BATCH, chosen
from opensana.metrics.frechet import Extract, Moments, clip_features, frechet_distance
from opensana.metrics.reconstruction import Tally, pairs, through
from opensana.models.find import find_autoencoder
from opensana.models.load import load_autoencoder

CLIP, CROP = Path("recipes/emoji/clip"), 64
GROUNDS = ("white", "colours", "busy")
SHOWN, ENLARGED = 5, 96


def pictures(data: EmojiData, ground: str) -> np.ndarray:
    """All held-out emoji on one kind of ground, uint8 [B, 256, 256, 3]."""
    drawn = []
    for place, record in enumerate(chosen(data, "held_out")):
        names = list(COLOURS)[1:]
        scene = Scene((record.index,), "white" if ground == "white" else names[place % len(names)])
        if ground != "busy":
            drawn.append(compose(scene, data.pictures))
            continue
        rgba = data.pictures[record.index].astype(np.float32)
        alpha = rgba[..., 3:] / 255
        drawn.append(np.rint(rgba[..., :3] * alpha + busy(place) * (1 - alpha)).astype(np.uint8))
    return np.stack(drawn)


def busy(seed: int) -> np.ndarray:
    """Noise of several sizes, as grass, leaves or a crowd have it, float32 [256, 256, 3]."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(3, SIZE, SIZE)
    for side, weight in ((4, 1.0), (16, 0.6), (64, 0.4), (128, 0.2)):
        noise = torch.randn(1, 3, side, side, generator=generator)
        total += weight * functional.interpolate(noise, SIZE, mode="bicubic")[0]
    return (128 + 50 * total).clamp(0, 255).permute(1, 2, 0).numpy()


def batches(array: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(array), BATCH):
        yield array[start : start + BATCH]


def crops(images: Tensor) -> Tensor:
    """Pictures [B, 3, H, W] in pieces [B', 3, 64, 64]."""
    tiles = images.unfold(2, CROP, CROP).unfold(3, CROP, CROP)
    return tiles.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)


def examine(
    autoencoder: Autoencoder, extract: Extract, array: np.ndarray
) -> tuple[dict[str, float], Tensor]:
    """The figures on pictures of one kind, and what became of the first ones."""
    tally, first_ones = Tally(), []
    moments = {name: (Moments(), Moments()) for name in ("pictures", "crops")}
    for before, after in pairs(through(autoencoder), batches(array)):
        tally.add(before, after)
        first_ones.append(after)
        for side, images in enumerate((before, after)):
            moments["pictures"][side].add(extract(images))
            moments["crops"][side].add(extract(crops(images)))
    figures = tally.figures()
    distances = {f"frechet_{name}": frechet_distance(*pair) for name, pair in moments.items()}
    return (
        {"psnr": round(figures.psnr, 2), "ssim": round(figures.ssim, 4)}
        | {name: round(1000 * value, 3) for name, value in distances.items()},
        torch.cat(first_ones)[:SHOWN],
    )


def save_strip(path: Path, rows: list[Tensor]) -> None:
    """Centres of pictures, twice as large: a row for each source."""
    edge = (SIZE - ENLARGED) // 2
    cut = [row[..., edge:-edge, edge:-edge] for row in rows]
    sheet = torch.cat([torch.cat(list(row), dim=2) for row in cut], dim=1)
    image = Image.fromarray((sheet.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())
    image.resize((image.width * 2, image.height * 2), Image.Resampling.NEAREST).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Autoencoders on white, plain, busy backgrounds.")
    parser.add_argument("models", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--data", type=Path, default=Path("data/emoji"))
    parser.add_argument("--strip", type=Path, help="a PNG of enlarged details")
    arguments = parser.parse_args()
    data, extract = EmojiData.open(arguments.data), clip_features(CLIP, torch.device("cpu"))
    sets = {ground: pictures(data, ground) for ground in GROUNDS}
    originals = torch.from_numpy(sets["white"][:SHOWN]).permute(0, 3, 1, 2) / 255
    results, rows = {}, [originals]
    for model in arguments.models:
        name, _, folder = model.rpartition("=")
        autoencoder = load_autoencoder(find_autoencoder(folder)).float()
        results[name] = {}
        for ground, array in sets.items():
            results[name][ground], shown = examine(autoencoder, extract, array)
            print(name, ground, results[name][ground], flush=True)
            if ground == "white":
                rows.append(shown)
    if arguments.strip is not None:
        save_strip(arguments.strip, rows)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
