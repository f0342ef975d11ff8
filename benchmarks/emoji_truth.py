"""Are the questions about composed scenes judged right? True scenes must be, before and after the
autoencoder.

    python -m benchmarks.emoji_truth --count 100

Prints the share of true scenes that each question finds right, and those that it does not.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from opensana.datasets.emoji.dataset import EmojiData
from opensana.datasets.emoji.generator import Vocabulary
from opensana.evaluate.emoji.detect import Detector
from opensana.evaluate.emoji.questions import QUESTIONS, questions, right
from opensana.evaluate.emoji.reconstruction import round_trip
from opensana.models.find import find_autoencoder
from opensana.models.load import load_autoencoder


def main() -> None:
    parser = argparse.ArgumentParser(description="Judge true scenes.")
    parser.add_argument("--data", type=Path, default=Path("data/emoji"))
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--questions", nargs="+", choices=QUESTIONS, default=QUESTIONS)
    arguments = parser.parse_args()
    vocabulary = Vocabulary(EmojiData.open(arguments.data))
    detector = Detector(vocabulary)
    model = load_autoencoder(find_autoencoder("emoji-256")).float()
    for name in arguments.questions:
        asked = questions(vocabulary, name, arguments.count)
        pictures = [vocabulary.painter.draw(one.scene) for one in asked]
        for what, shown in (
            ("as composed", [Image.fromarray(picture) for picture in pictures]),
            ("after the autoencoder", round_trip(model, pictures)),
        ):
            verdicts = [
                right(detector, name, one.scene, picture)
                for one, picture in zip(asked, shown, strict=True)
            ]
            print(f"{name:<20} {what:<22} {np.mean(verdicts):.3f}", flush=True)
            for one, verdict in zip(asked, verdicts, strict=True):
                if not verdict:
                    print(f"    not found: {one.prompt} ({one.scene.key})", flush=True)


if __name__ == "__main__":
    main()
