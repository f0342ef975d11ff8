"""The folder of a run: its settings, its figures, and examples of its pictures for a report."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from opensana.errors import ConfigError
from opensana.files.writing import atomic_folder, read_json, write_json

SETTINGS, FIGURES, EXAMPLES, INDEX = "settings.json", "figures.json", "examples", "index.json"
REFERENCE = "reference"
"""The column of what the others are compared with."""
SHOWN = 24
LARGEST = 512
"""Of a kept example's sides, in pixels."""


@dataclass(frozen=True)
class Shown:
    """A picture in a row of examples; a model that drew it did so with this seed."""

    picture: Image.Image
    caption: str = ""
    seed: int | None = None


@dataclass(frozen=True)
class Example:
    """Pictures that belong together, by column: all of one prompt, or of one original."""

    key: str
    text: str
    columns: Mapping[str, Shown]


def check_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """A folder belongs to one set of settings; ConfigError for others."""
    folder.mkdir(parents=True, exist_ok=True)
    path, settings = folder / SETTINGS, json.loads(json.dumps(settings))
    if not path.exists():
        write_json(path, settings)
        return
    known = read_json(path)
    for name in known.keys() | settings.keys():
        if known.get(name) != settings.get(name):
            raise ConfigError(
                f"{folder} was begun with {name} {known.get(name)!r}, got {settings.get(name)!r}; "
                "choose another --to"
            )


def spread(count: int, most: int) -> list[int]:
    """At most so many numbers below `count`, evenly spaced."""
    return np.linspace(0, count - 1, min(most, count)).astype(int).tolist()


def write_examples(folder: Path, groups: Mapping[str, Iterable[Example]]) -> None:
    """Replace the folder's examples; each group has a title."""
    with atomic_folder(folder / EXAMPLES) as temporary:
        index: dict[str, list[dict[str, Any]]] = {}
        number = 0
        for title, examples in groups.items():
            rows = index[title] = []
            for example in examples:
                columns = {}
                for name, shown in example.columns.items():
                    file = f"{number:04d}.png"
                    picture = shown.picture.convert("RGB")
                    picture.thumbnail((LARGEST, LARGEST), Image.Resampling.BICUBIC)
                    picture.save(temporary / file, format="PNG")
                    columns[name] = {"file": file, "caption": shown.caption, "seed": shown.seed}
                    number += 1
                rows.append({"key": example.key, "text": example.text, "columns": columns})
        write_json(temporary / INDEX, index)


def read_examples(folder: Path) -> dict[str, Sequence[Example]]:
    """What `write_examples` wrote."""
    where = folder / EXAMPLES
    if not where.is_dir():
        return {}
    found: dict[str, Sequence[Example]] = {}
    for title, rows in read_json(where / INDEX).items():
        found[title] = [
            Example(
                row["key"],
                row["text"],
                {name: _shown(where, value) for name, value in row["columns"].items()},
            )
            for row in rows
        ]
    return found


def _shown(where: Path, value: Mapping[str, Any]) -> Shown:
    with Image.open(where / Path(value["file"]).name) as picture:
        picture.load()
    return Shown(picture, value["caption"], value["seed"])
