"""Put the trained parts into the package as the embedded model, in the published layout.

    python recipes/emoji/publish.py --autoencoder runs/emoji-autoencoder \
        --transformer runs/emoji-transformer/export --sprint runs/emoji-sprint/export

The weights are stored in half precision. The text encoder stays in its own package.
"""

import argparse
from pathlib import Path

import torch

import opensana
from opensana.layout import Notes, load_autoencoder, load_transformer, write_model_without_text

TARGET = Path(opensana.__file__).parent / "pretrained" / "emoji-256"
SHIFT = 3.0
NOTES = Notes(
    text_encoder="gemma3-270m",
    instruction="diffusers",
    steps=4,
    guidance=1.0,  # both: docs/emoji.md; benchmarks/guidance_sweep.py
    licence="weights: Apache-2.0, trained on Fluent Emoji (MIT); text encoder: Gemma terms",
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the embedded model into the package.")
    parser.add_argument("--autoencoder", type=Path, required=True)
    parser.add_argument("--transformer", type=Path, required=True)
    parser.add_argument("--sprint", type=Path, help="the distilled transformer, if there is one")
    parser.add_argument("--to", type=Path, default=TARGET)
    arguments = parser.parse_args()
    write_model_without_text(
        arguments.to,
        transformer=load_transformer(arguments.transformer),
        autoencoder=load_autoencoder(arguments.autoencoder),
        sprint=arguments.sprint and load_transformer(arguments.sprint),
        shift=SHIFT,
        notes=NOTES,
        dtype=torch.float16,
    )
    size = sum(path.stat().st_size for path in arguments.to.rglob("*") if path.is_file())
    print(f"{arguments.to}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
