"""Write the autoencoder that the training starts from: the principal components of the patches.

    python recipes/emoji/initialise.py --data data/emoji --to runs/emoji-initial

Takes about a minute. The result is the best linear code of 32 numbers for a 32 x 32 patch, held
exactly by a DC-AE (opensana/autoencoder/principal.py); on held-out pictures it gives the figure
that a trained autoencoder must beat. `--compression 8 --channels 16` makes the shallower one that
benchmarks/compression.py compares it with.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from opensana.autoencoder import Autoencoder, AutoencoderConfig
from opensana.autoencoder.principal import principal_code, start_from
from opensana.datasets.crops import PictureSource, stacked
from opensana.pictures.pixels import from_levels
from opensana.train.checkpoints.export import Export

WIDTHS = (16, 16, 32, 64, 128, 256)
RESIDUAL, ATTENTION = "ResBlock", "EfficientViTBlock"
ENCODER_LAYERS, DECODER_LAYERS = (0, 1, 1, 1, 2, 2), (0, 1, 1, 2, 2, 2)
COMPRESSIONS = (8, 16, 32)
SIZE = 256


def configuration(compression: int, channels: int) -> AutoencoderConfig:
    """The first stages of one design, down to a compression; attention in the last."""
    stages = compression.bit_length()
    types = (RESIDUAL,) * (stages - 1) + (ATTENTION,)
    scales = ((),) * (stages - 1) + ((5,),)
    return AutoencoderConfig(
        latent_channels=channels,
        encoder_block_types=types,
        decoder_block_types=types,
        encoder_block_out_channels=WIDTHS[:stages],
        decoder_block_out_channels=WIDTHS[:stages],
        encoder_layers_per_block=ENCODER_LAYERS[:stages],
        decoder_layers_per_block=DECODER_LAYERS[:stages],
        encoder_qkv_multiscales=scales,
        decoder_qkv_multiscales=scales,
        decoder_norm_types=("rms_norm",) * stages,
        decoder_act_fns=("silu",) * stages,
        downsample_block_type="Conv",
        upsample_block_type="pixel_shuffle",
        scaling_factor=1.0,
    )


def patches_of(source: PictureSource, size: int, *, every: int = 3) -> Tensor:
    """Patches [N, 3, size, size] of every third picture, whole, on white."""
    pictures = [source.square(index, SIZE) for index in range(0, len(source), every)]
    pixels = from_levels(stacked(pictures))
    tiles = pixels.unfold(2, size, size).unfold(3, size, size)
    return tiles.permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, size, size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=Path("data/emoji"))
    parser.add_argument("--to", type=Path, default=Path("runs/emoji-initial"))
    parser.add_argument("--compression", type=int, choices=COMPRESSIONS, default=32)
    parser.add_argument("--channels", type=int, default=32)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = Autoencoder(configuration(arguments.compression, arguments.channels))
    source = PictureSource.open(arguments.data, split="train")
    code = principal_code(patches_of(source, model.compression), model.latent_channels)
    start_from(model, code)
    arguments.to.mkdir(parents=True, exist_ok=True)
    Export(arguments.to, model.config.to_dict(), model.state_dict()).write()
    explained = np.square(code.deviation.numpy()).sum()
    print(
        f"{arguments.to}: {sum(p.numel() for p in model.parameters()):,} parameters, "
        f"variance in the code {explained:.1f}"
    )


if __name__ == "__main__":
    main()
