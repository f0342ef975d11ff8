"""Make a folder of twenty emoji in Fluent's flat style with captions, to train a LoRA on (seconds).

python recipes/emoji/lora_pictures.py --to data/flat
python recipes/emoji/lora_pictures.py --to data/flat --archives FOLDER   # an already packed .tgz

The pictures are Fluent Emoji (MIT): SVG files of filled paths, which are drawn here with Pillow.
"""

import argparse
import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from opensana.datasets.emoji.fetch import Package, fetch, find, read_members
from opensana.errors import DataError, OpensanaError

FLAT = Package(
    name="@lobehub/fluent-emoji-flat",
    version="1.1.0",
    sha512="94f60283cf8de7a3088fe88e81e05e1fa005d2d9de5f1242be08b8d6b3938c05"
    "a9039ad4d9651c994d5f8885e8b847bc1ab4936ab58260b63630bfab74b447b2",
)
# Everyday things of many colours and shapes; the style must not be that of one kind of thing.
PICTURES = {
    "1f34c": "a banana",
    "1f353": "a strawberry",
    "1f349": "a watermelon",
    "1f354": "a hamburger",
    "1f369": "a doughnut",
    "1f431": "a cat face",
    "1f43c": "a panda",
    "1f427": "a penguin",
    "1f41d": "a honeybee",
    "1f697": "an automobile",
    "26f5": "a sailboat",
    "1f3e0": "a house",
    "2b50": "a star",
    "2600-fe0f": "a sun",
    "1f335": "a cactus",
    "1f339": "a rose",
    "1f47b": "a ghost",
    "1f451": "a crown",
    "1f511": "a key",
    "1f4a1": "a light bulb",
}
STYLE = "flat emoji of {}"
SIZE, FINER, UNITS = 256, 4, 32
PATH = re.compile(r"<path ([^>]*)/>")
ATTRIBUTE = re.compile(r'([\w-]+)="([^"]*)"')
WORD = re.compile(r"[A-Za-z]|-?\d*\.?\d+(?:e-?\d+)?")
NUMBERS = {"M": 2, "L": 2, "H": 1, "V": 1, "C": 6, "Z": 0}
KNOWN = {"d", "fill", "fill-rule", "clip-rule"}


def main() -> int:
    parser = argparse.ArgumentParser(description="Make a folder of flat emoji with captions.")
    parser.add_argument("--to", type=Path, required=True, help="the folder to make")
    parser.add_argument("--archives", type=Path, help="a folder with the packed package")
    arguments = parser.parse_args()
    try:
        with TemporaryDirectory(prefix="opensana-flat-") as download:
            given = arguments.archives
            archive = find(FLAT, given) if given else fetch(FLAT, Path(download))
            names = {f"package/assets/{code}.svg": code for code in PICTURES}
            members = read_members(archive, names.__contains__)
        arguments.to.mkdir(parents=True, exist_ok=True)
        for name, code in names.items():
            drawn(members[name].decode()).save(arguments.to / f"{code}.png")
            caption = STYLE.format(PICTURES[code])
            (arguments.to / f"{code}.txt").write_text(caption + "\n", "utf-8")
    except OpensanaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{len(PICTURES)} pictures in {arguments.to}")
    return 0


def drawn(svg: str) -> Image.Image:
    """The filled paths of an SVG of 32 x 32 units on white; DataError for anything else."""
    image = Image.new("RGB", (SIZE * FINER, SIZE * FINER), "white")
    rest = re.sub(r"</?svg[^>]*>", "", PATH.sub("", svg)).strip()
    if rest or f'viewBox="0 0 {UNITS} {UNITS}"' not in svg:
        raise DataError(f"an SVG with more than filled paths cannot be drawn: {rest[:60]!r}")
    for match in PATH.finditer(svg):
        values = dict(ATTRIBUTE.findall(match[1]))
        if set(values) - KNOWN:
            raise DataError(f"a path with {sorted(set(values) - KNOWN)} cannot be drawn")
        mask = Image.new("1", image.size)
        for points in outlines(values["d"]):
            part = Image.new("1", image.size)
            corners = [(float(x), float(y)) for x, y in points * (SIZE * FINER / UNITS)]
            ImageDraw.Draw(part).polygon(corners, fill=1)
            mask = ImageChops.logical_xor(mask, part)  # an outline inside another is a hole
        image.paste(values["fill"], mask=mask)
    return image.resize((SIZE, SIZE), Image.Resampling.BOX)


def outlines(path: str) -> list[np.ndarray]:
    """The closed outlines [N, 2] of a path of absolute lines and cubic curves."""
    words, found, points = WORD.findall(path), [], []
    command = ""
    while words:
        if words[0].isalpha():
            command = words.pop(0)
        if command not in NUMBERS:
            raise DataError(f"a path with the command {command!r} cannot be drawn")
        numbers = [float(words.pop(0)) for _ in range(NUMBERS[command])]
        if command == "M":
            points = [np.array(numbers)]
            found.append(points)
            command = "L"
        elif command == "C":
            points.extend(curve(points[-1], *np.reshape(numbers, (3, 2))))
        elif command != "Z":
            x, y = points[-1]
            if command == "H":
                x = numbers[0]
            elif command == "V":
                y = numbers[0]
            else:
                x, y = numbers
            points.append(np.array([x, y]))
    return [np.array(outline) for outline in found]


def curve(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> list[np.ndarray]:
    """Points of a cubic Bezier curve after its first."""
    t = np.linspace(0, 1, 17)[1:, None]
    u = 1 - t
    return list(u**3 * a + 3 * u * u * t * b + 3 * u * t * t * c + t**3 * d)


if __name__ == "__main__":
    sys.exit(main())
