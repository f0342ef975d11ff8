r"""Give the latent channels the scale at which the transformer learns best, and freeze the encoder.

    python recipes/emoji/scale.py --from runs/emoji-autoencoder-1-full/export \
        --to runs/emoji-autoencoder

A channel's deviation becomes its gain (how far the picture moves with it) to the power `--power`,
then all are brought to unit variance together: 0 whitens, 1 makes errors in latents count like
errors in pixels. The autoencoder as a whole stays the same function
(opensana/autoencoder/latent_scale.py). Takes a minute.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from opensana.autoencoder.latent_scale import channel_gains, scale_channels
from opensana.datasets.crops import PictureSource, stacked
from opensana.models.find import find_autoencoder
from opensana.models.load import load_autoencoder
from opensana.pictures.pixels import from_levels
from opensana.train.checkpoints.export import Export

PICTURES, SIZE = 48, 256


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description="Scale the latent channels by their gains.")
    parser.add_argument("--data", type=Path, default=Path("data/emoji"))
    parser.add_argument("--from", dest="source", required=True)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--power", type=float, default=0.5)
    arguments = parser.parse_args()
    model = load_autoencoder(find_autoencoder(arguments.source)).float()
    pictures = PictureSource.open(arguments.data, split="train")
    indices = torch.linspace(0, len(pictures) - 1, PICTURES).long().tolist()
    pixels = from_levels(stacked([pictures.square(index, SIZE) for index in indices]))

    before = model(pixels)
    deviations = model.encoder(pixels).std(dim=(0, 2, 3))
    wanted = channel_gains(model, pixels) ** arguments.power
    scale_channels(model, wanted / wanted.square().mean().sqrt() / deviations)
    after = model.encoder(pixels)
    error = (model.decoder(after) - before).abs().max()
    model.config = replace(model.config, scaling_factor=1.0)
    Export(arguments.to, model.config.to_dict(), model.state_dict()).write()
    spread = after.std(dim=(0, 2, 3))
    print(
        f"{arguments.to}: latent deviation {after.std():.3f}, channels {spread.min():.2f} to "
        f"{spread.max():.2f}; largest change of a picture {error:.1e}"
    )


if __name__ == "__main__":
    main()
