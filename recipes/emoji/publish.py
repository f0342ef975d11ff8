"""Put the trained parts into the package as the embedded model, in the published layout.

    python recipes/emoji/publish.py --autoencoder runs/emoji-autoencoder \
        --transformer runs/emoji-transformer/export --sprint runs/emoji-sprint/export

The weights are stored in half precision. The text encoder stays in its own package. With
`--earlier FOLDER --share 0.75` the transformer is the weighted mean of this run and of the one that
it went on from (model soups, arXiv 2203.05482).
"""

import argparse
from pathlib import Path

import torch

import opensana
from opensana.autoencoder.preview import Preview
from opensana.models.find import find_autoencoder, find_transformer
from opensana.models.index import ModelDefaults
from opensana.models.load import load_autoencoder, load_transformer
from opensana.models.save import write_model_without_text
from opensana.transformer.model import Transformer

TARGET = Path(opensana.__file__).parent / "pretrained" / "emoji-256"
SHIFT = 3.0
DEFAULTS = ModelDefaults(
    text_encoder="gemma3-270m",
    instruction="diffusers",
    steps=4,
    guidance=1.0,  # both: docs/emoji.md; benchmarks/guidance_sweep.py
    licence="weights: Apache-2.0, trained on Fluent Emoji (MIT); text encoder: Gemma terms",
)


@torch.no_grad()
def blend(model: torch.nn.Module, earlier: torch.nn.Module, *, share: float) -> None:
    """Make the weights of `model` the mean of both, its own counting `share`."""
    others = dict(earlier.named_parameters())
    for name, weight in model.named_parameters():
        weight.copy_(torch.lerp(others[name].float(), weight.float(), share))


def transformer_of(name: str) -> Transformer:
    return load_transformer(find_transformer(name))


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the embedded model into the package.")
    parser.add_argument("--autoencoder", required=True)
    parser.add_argument("--transformer", required=True)
    parser.add_argument("--earlier", help="the run that the transformer went on from")
    parser.add_argument("--share", type=float, default=1.0, help="of the transformer in the mean")
    parser.add_argument("--sprint", help="the distilled transformer, if there is one")
    parser.add_argument("--to", type=Path, default=TARGET)
    arguments = parser.parse_args()
    if not 0 <= arguments.share <= 1 or (arguments.share < 1) != (arguments.earlier is not None):
        parser.error("--share is a number in 0..1 for the mean with --earlier")
    transformer = transformer_of(arguments.transformer)
    if arguments.earlier is not None:
        blend(transformer, transformer_of(arguments.earlier), share=arguments.share)
    folder = find_autoencoder(arguments.autoencoder)
    autoencoder = load_autoencoder(folder)
    write_model_without_text(
        arguments.to,
        transformer=transformer,
        autoencoder=autoencoder,
        preview=Preview.read(folder, autoencoder.latent_channels),
        sprint=arguments.sprint and transformer_of(arguments.sprint),
        shift=SHIFT,
        defaults=DEFAULTS,
        dtype=torch.float16,
    )
    size = sum(path.stat().st_size for path in arguments.to.rglob("*") if path.is_file())
    print(f"{arguments.to}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
