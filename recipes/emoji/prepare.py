"""Make the prepared emoji folder (about 900 MB, one minute).

python recipes/emoji/prepare.py --to data/emoji
python recipes/emoji/prepare.py --to data/emoji --archives FOLDER   # already packed .tgz files
"""

import argparse
import json
import sys
from pathlib import Path

from opensana.datasets.emoji.preparation import prepare
from opensana.errors import OpensanaError


def main() -> int:
    parser = argparse.ArgumentParser(description="Make the prepared emoji folder.")
    parser.add_argument("--to", type=Path, required=True, help="the folder to make")
    parser.add_argument("--archives", type=Path, help="a folder with the packed packages")
    arguments = parser.parse_args()
    try:
        data = prepare(arguments.to, archives=arguments.archives)
    except OpensanaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(data.manifest["counts"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
