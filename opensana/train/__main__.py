"""`python -m opensana.train RECIPE.toml --set a.b=value`."""

import argparse
import sys

from opensana.errors import OpensanaError
from opensana.train import run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m opensana.train", description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=value", dest="overrides")
    arguments = parser.parse_args()
    try:
        run(arguments.recipe, arguments.overrides)
    except OpensanaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
