"""Cache the text states of all captions of the emoji, held-out ones too: what the CLIP reads.

python recipes/emoji/caption.py --data data/emoji --to data/emoji-captions
"""

import argparse
import sys
from pathlib import Path

from encode import encode_text

from opensana.datasets.emoji.dataset import EmojiData
from opensana.errors import OpensanaError


def main() -> int:
    parser = argparse.ArgumentParser(description="Cache the text states of the emoji's captions.")
    parser.add_argument("--data", type=Path, default=Path("data/emoji"))
    parser.add_argument("--to", type=Path, default=Path("data/emoji-captions"))
    arguments = parser.parse_args()
    try:
        records = EmojiData.open(arguments.data).plain
        encode_text(arguments.to, {c.text for record in records for c in record.captions})
    except OpensanaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
