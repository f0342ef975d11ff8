"""Draw training scenes as PNG files with captions: to look at, or for `opensana preview`.

python recipes/emoji/draw_scenes.py --scenes 1500 --to data/scenes
opensana preview emoji-256 data/scenes --size 256 --limit 1500
"""

import argparse
import sys
from pathlib import Path

from encode_scenes import SEED, counts
from PIL import Image

from opensana.datasets.emoji.dataset import EmojiData
from opensana.datasets.emoji.generator import Vocabulary, training_scenes
from opensana.errors import OpensanaError


def main() -> int:
    parser = argparse.ArgumentParser(description="Draw scenes as PNG files with captions.")
    parser.add_argument("--data", type=Path, default=Path("data/emoji"))
    parser.add_argument("--scenes", type=int, default=1500)
    parser.add_argument("--to", type=Path, required=True)
    arguments = parser.parse_args()
    try:
        vocabulary = Vocabulary(EmojiData.open(arguments.data))
    except OpensanaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    arguments.to.mkdir(parents=True, exist_ok=True)
    scenes = training_scenes(vocabulary, counts(arguments.scenes), seed=SEED)
    for index, (scene, text) in enumerate(scenes):
        file = arguments.to / f"{index:05}.png"
        Image.fromarray(vocabulary.painter.draw(scene)).save(file)
        file.with_suffix(".txt").write_text(text + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
