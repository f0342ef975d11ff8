"""Label the emoji of the vocabulary: every source of names is a captioner, a small CLIP scores.

    python recipes/emoji/label.py --data data/emoji --pictures data/emoji-pictures \
        --to data/emoji-labels

Writes the vocabulary as an ordinary data set (pictures on white, no captions) with captions.jsonl
beside it, one column for each source, and runs what `opensana label` runs. Held-out captions are
in no column. A source that knows several names of an emoji has several columns: github, github-2.
"""

import argparse
import json
import sys
from collections import Counter
from functools import partial
from pathlib import Path

from PIL import Image

from opensana.cli.label import open_pictures
from opensana.datasets.emoji.compose import Scene, compose
from opensana.datasets.emoji.dataset import EmojiData, Record
from opensana.errors import OpensanaError
from opensana.files.writing import atomic_folder
from opensana.label.run import Plan, label

CAPTIONS = "captions.jsonl"


def main() -> int:
    parser = argparse.ArgumentParser(description="Caption and score the emoji of the vocabulary.")
    parser.add_argument("--data", type=Path, default=Path("data/emoji"))
    parser.add_argument("--pictures", type=Path, default=Path("data/emoji-pictures"))
    parser.add_argument("--to", type=Path, default=Path("data/emoji-labels"))
    parser.add_argument("--clip", default="recipes/emoji/clip")
    arguments = parser.parse_args()
    try:
        data = EmojiData.open(arguments.data)
        if not arguments.pictures.exists():
            write_pictures(data, arguments.pictures)
        plan = Plan(
            captioners=captioners(data, arguments.pictures), clip=arguments.clip, measure=True
        )
        pictures = partial(open_pictures, str(arguments.pictures), None, plan.max_bad)
        label(pictures, arguments.to, plan)
    except OpensanaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def write_pictures(data: EmojiData, folder: Path) -> None:
    """Each emoji as HEXCODE.png, and captions.jsonl; all of it or nothing."""
    with (
        atomic_folder(folder) as new,
        (new / CAPTIONS).open("w", encoding="utf-8") as table,
    ):
        for record in data.vocabulary:
            pixels = compose(Scene(emoji=(record.index,)), data.pictures)
            Image.fromarray(pixels).save(new / f"{record.hexcode}.png")
            table.write(json.dumps({"key": record.hexcode, **columns(record)}) + "\n")


def captioners(data: EmojiData, folder: Path) -> tuple[str, ...]:
    """The columns of the table, the label first."""
    names = dict.fromkeys(name for record in data.vocabulary for name in columns(record))
    return tuple(f"table:{folder / CAPTIONS}#{name}" for name in names)


def columns(record: Record) -> dict[str, str]:
    """Source -> caption, of those that may be trained on."""
    seen: Counter[str] = Counter()
    found: dict[str, str] = {}
    for caption in record.training_captions:
        seen[caption.source] += 1
        count = seen[caption.source]
        found[caption.source if count == 1 else f"{caption.source}-{count}"] = caption.text
    return found


if __name__ == "__main__":
    sys.exit(main())
