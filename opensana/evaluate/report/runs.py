"""The folders that `evaluate --benchmark` and `reconstruct` leave, as columns and sheets."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from opensana.errors import RequestError
from opensana.evaluate.folder import (
    FIGURES,
    REFERENCE,
    SETTINGS,
    Example,
    Shown,
    read_examples,
)
from opensana.files.writing import read_json

MOST_NAMED = 3
MODELS = "models"
"""In the figures of a run of several autoencoders; another run is of one model."""
PICTURES, AUTOENCODERS = "Pictures of prompts", "Reconstructions"
QUESTIONS = {"geneval": "GenEval", "dpg": "DPG-Bench"}
"""Kinds whose figures are shares of what is right, by the benchmark of the run's settings."""
SAID = (
    "benchmark",
    "source",
    "reference",
    "protocol",
    "pictures",
    "images",
    "size",
    "steps",
    "seed",
)


@dataclass(frozen=True)
class Column:
    """What was measured of one model."""

    name: str
    kind: str
    """What it is measured as; two kinds have no figures in common."""
    facts: dict[str, str]
    """How it was measured."""
    figures: dict[str, dict[str, Any]]
    categories: dict[str, dict[str, Any]]
    left_out: dict[str, str]


@dataclass(frozen=True)
class Sheet:
    """Rows of pictures; a row has a picture of each column, named as the columns are."""

    title: str
    source: str
    columns: list[str]
    rows: list[Example]

    @property
    def equal_seeds(self) -> bool:
        """Whether models drew each row from the same noise."""
        found = [{shown.seed for shown in _drawn(row)} for row in self.rows]
        return all(len(seeds) == 1 and None not in seeds for seeds in found)

    @property
    def different_seeds(self) -> bool:
        return any(len({shown.seed for shown in _drawn(row)} - {None}) > 1 for row in self.rows)


@dataclass(frozen=True)
class Report:
    """Everything that a page shows."""

    title: str
    columns: list[Column]
    sheets: list[Sheet]

    def kinds(self) -> Iterator[tuple[str, dict[int, Column]]]:
        """The columns of each kind, by their number in the report."""
        for kind in dict.fromkeys(column.kind for column in self.columns):
            yield kind, {i: c for i, c in enumerate(self.columns) if c.kind == kind}

    def plain(self) -> dict[str, Any]:
        """The figures, and what the sheets show, without the pictures."""
        return {
            "title": self.title,
            "runs": [asdict(column) for column in self.columns],
            "sheets": [
                {
                    "title": sheet.title,
                    "source": sheet.source,
                    "rows": [_plain(row) for row in sheet.rows],
                }
                for sheet in self.sheets
            ],
        }


def read_report(folders: Sequence[Path], *, title: str | None = None) -> Report:
    """What the folders of finished runs hold; RequestError if one is none."""
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise RequestError(f"a run is named twice: {', '.join(map(str, folders))}")
    columns: list[Column] = []
    groups: dict[tuple[str, str], list[tuple[list[str], Sequence[Example]]]] = {}
    labels = _labels(folders)
    for folder in folders:
        settings, figures = (_read(folder, name) for name in (SETTINGS, FIGURES))
        found = _columns(labels[folder], settings, figures)
        columns += found.values()
        names = {inner: column.name for inner, column in found.items()}
        source = str(settings.get("benchmark") or settings.get("pictures"))
        for heading, examples in read_examples(folder).items():
            renamed = [_renamed(example, names) for example in examples]
            groups.setdefault((heading, source), []).append((list(names.values()), renamed))
    twice = {c.name for c in columns if sum(c.name == other.name for other in columns) > 1}
    if twice:
        columns_of = ", ".join(sorted(twice))
        raise RequestError(f"several runs measured {columns_of}; give one folder of each")
    sheets = [_sheet(*group, parts) for group, parts in groups.items()]
    names = [column.name for column in columns]
    return Report(title or _named(names), columns, sheets)


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"Evaluation of {', '.join(names[:MOST_NAMED])}{more}"


def _labels(folders: Sequence[Path]) -> dict[Path, str]:
    """The folders' names, with that of the folder above where two are alike."""
    found = {folder: folder.resolve().name for folder in folders}
    for folder, name in list(found.items()):
        if list(found.values()).count(name) > 1:
            found[folder] = f"{folder.resolve().parent.name}/{name}"
    return found


def _read(folder: Path, name: str) -> dict[str, Any]:
    if not (folder / name).is_file():
        raise RequestError(
            f"{folder} has no {name}: expected a finished run, the --to of `opensana evaluate "
            "--benchmark` or of `opensana reconstruct`"
        )
    return read_json(folder / name)


def _columns(
    label: str, settings: Mapping[str, Any], figures: Mapping[str, Any]
) -> dict[str, Column]:
    """By the name that the run's own examples give each."""
    said = {name: value for name, value in settings.items() if name in SAID and value is not None}
    said |= {name: figures[name] for name in SAID if name in figures}
    facts = {name: str(said[name]) for name in SAID if name in said}
    left_out = dict(figures.get("left_out", {}))
    if MODELS in figures:
        return {
            name: Column(name, AUTOENCODERS, {"autoencoder": name} | facts, found, {}, left_out)
            for name, found in figures[MODELS].items()
        }
    drawn = {"model": settings["model"]} if settings.get("model") else {}
    drawn = drawn or {"drawn elsewhere": str(settings.get("pictures", ""))}
    own = figures.get("figures", {}), figures.get("categories", {})
    kind = QUESTIONS.get(str(settings.get("benchmark")), PICTURES)
    return {"drawn": Column(label, kind, drawn | facts, *own, left_out)}


def _renamed(example: Example, names: Mapping[str, str]) -> Example:
    columns = {names.get(name, name): shown for name, shown in example.columns.items()}
    return replace(example, columns=columns)


def _sheet(title: str, source: str, parts: Sequence[tuple[list[str], Sequence[Example]]]) -> Sheet:
    """Rows of the same key and text become one; those that all runs have, if there are any."""
    merged: dict[tuple[str, str], dict[str, Shown]] = {}
    for _, examples in parts:
        for example in examples:
            row = merged.setdefault((example.key, example.text), {})
            row |= {name: shown for name, shown in example.columns.items() if name not in row}
    names = [name for own, _ in parts for name in own]
    if any(REFERENCE in row for row in merged.values()):
        names = [REFERENCE, *names]
    whole = {key: row for key, row in merged.items() if len(row) == len(names)}
    rows = [Example(key, text, row) for (key, text), row in (whole or merged).items()]
    return Sheet(title, source, names, rows)


def _drawn(row: Example) -> list[Shown]:
    return [shown for name, shown in row.columns.items() if name != REFERENCE]


def _plain(row: Example) -> dict[str, Any]:
    columns = {
        name: {"caption": shown.caption, "seed": shown.seed} for name, shown in row.columns.items()
    }
    return {"key": row.key, "text": row.text, "columns": columns}
