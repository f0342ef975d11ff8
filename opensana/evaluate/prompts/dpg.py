"""DPG-Bench (ELLA, arXiv 2403.05135): its prompts and questions, its pictures, its results.

    questions   dpg_bench.csv: item_id, text, proposition_id, dependency, tuple,
                question_natural_language; a row a question, the rows of an item together
    pictures    ITEM.png, four pictures of the item's prompt as 2 x 2
    results     the text file of its compute_dpg_bench.py

An item's score is the share of its questions with the answer yes; a question whose parent has a no
counts as no. The benchmark's is the mean over items.
"""

import csv
import io
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from opensana.errors import DataError, RequestError
from opensana.evaluate.benchmark.figures import Figure, figure, mean_figure, plain
from opensana.evaluate.folder import FIGURES, check_settings
from opensana.evaluate.prompts.dpg_judge import PROTOCOL, Judge
from opensana.evaluate.prompts.drawing import Options, draw_missing, tiled
from opensana.evaluate.prompts.lines import read_text
from opensana.files.writing import write_atomic, write_json
from opensana.workers.progress import progress

PICTURES, ANSWERS = "pictures", "answers"
OFFICIAL = "DPG-Bench's own tool, mPLUG"
COLUMNS = 2
HOW_TO_GET = "it is dpg_bench/dpg_bench.csv of the repository TencentQQGYLab/ELLA"
COLUMN_NAMES = ("item_id", "text", "proposition_id", "dependency", "tuple")
QUESTION = "question_natural_language"
FIRST = 2
"""The line of the first row below the names of the columns."""


@dataclass(frozen=True)
class Question:
    """Asked of a picture; `parents` are numbers of questions that must have a yes."""

    text: str
    category: str
    parents: tuple[int, ...]


@dataclass(frozen=True)
class Item:
    """A prompt with its questions by number."""

    name: str
    prompt: str
    questions: dict[int, Question] = field(default_factory=dict)

    def scores(self, answers: Mapping[int, bool]) -> dict[int, bool]:
        """Of each question, where a no makes those that build on it a no."""
        found: dict[int, bool] = {}
        for number, question in self.questions.items():
            parents = [p for p in question.parents if p]
            found[number] = answers[number] and all(
                found.get(p, answers.get(p, True)) for p in parents
            )
        return found


def read_items(path: str | Path) -> list[Item]:
    """The items of the CSV; DataError for rows that are not DPG-Bench's."""
    items: dict[str, Item] = {}
    rows = csv.DictReader(io.StringIO(read_text(path, HOW_TO_GET)))
    for number, row in enumerate(rows, FIRST):
        try:
            name, prompt, proposition, dependency, category = (row[c] for c in COLUMN_NAMES)
            question = Question(
                row[QUESTION].strip(),
                category.partition("(")[0].strip(),
                tuple(int(part) for part in dependency.split(",")),
            )
            proposition = int(proposition)
        except (KeyError, ValueError, AttributeError, TypeError):
            if number == FIRST and row.keys() >= {*COLUMN_NAMES, QUESTION}:
                continue  # its own tool skips the first row, whatever that is
            raise DataError(f"{path}, line {number} is no question; {HOW_TO_GET}") from None
        if not question.text or not re.fullmatch(r"[\w.\-]{1,200}", name) or name.startswith("."):
            raise DataError(f"{path}, line {number} has no question or an odd item_id {name!r:.60}")
        item = items.setdefault(name, Item(name, prompt.strip()))
        item.questions[proposition] = question
    if not items:
        raise DataError(f"{path} has no questions; {HOW_TO_GET}")
    return list(items.values())


def evaluate_dpg(
    options: Options,
    to: str | Path,
    *,
    judge: Judge | None = None,
    results: str | Path | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Draw DPG-Bench's pictures; the figures of its own results, of a judge, or none.

    The figures are also written to `to/figures.json`.
    """
    if options.images > COLUMNS**2:
        raise RequestError(f"a picture of DPG-Bench holds at most 4, got {options.images}")
    items, folder = read_items(options.prompts), Path(to)
    rows, pictures = options.rows(len(items)), folder / PICTURES
    check_settings(folder, {"benchmark": "dpg"} | asdict(options))
    pictures.mkdir(exist_ok=True)
    paths = {row: pictures / f"{items[row].name}.png" for row in rows}

    def save(row: int, drawn: Sequence[Image.Image]) -> None:
        sheet = tiled(drawn, COLUMNS if len(drawn) > 1 else 1)
        write_atomic(paths[row], partial(sheet.save, format="PNG"))

    prompts = [item.prompt for item in items]
    draw_missing(options, prompts, rows, lambda row: not paths[row].exists(), save, device=device)
    found: dict[str, Any] = {"prompts": len(rows), "images": options.images * len(rows)}
    if results is not None:
        found |= {"protocol": OFFICIAL, "figures": plain(read_results(results))}
    elif judge is not None:
        chosen = {paths[row]: items[row] for row in rows}
        found |= {
            "protocol": judge.described,
            "figures": plain(_judged(judge, chosen, folder / ANSWERS, options.images)),
        }
    else:
        found["left_out"] = {
            "all figures": "judge by DPG-Bench's compute_dpg_bench.py --image-root-path "
            f"{pictures} --pic-num {options.images} and give its text file as --results, or give "
            "--ask for figures that do not compare"
        }
    write_json(folder / FIGURES, found)
    return found


def _judged(
    judge: Judge, items: Mapping[Path, Item], folder: Path, images: int
) -> dict[str, Figure]:
    """Ask all questions of all pictures; what was answered of an item is not asked again."""
    scores: list[float] = []
    by_category: dict[str, list[float]] = defaultdict(list)
    report = progress("prompts judged")
    for done, (path, item) in enumerate(items.items(), 1):
        with Image.open(path) as sheet:
            pictures = parts(sheet.convert("RGB"), images)
        asked = {number: question.text for number, question in item.questions.items()}
        given = judge.kept(folder / f"{item.name}.json", pictures, asked)
        found = [item.scores(answers) for answers in given]
        scores.append(float(np.mean([list(each.values()) for each in found])))
        for number, question in item.questions.items():
            category = question.category.partition("-")[0].strip()
            by_category[category].append(float(np.mean([answers[number] for answers in given])))
        report(done, len(items))
    figures = {"dpg": mean_figure(100 * np.array(scores), PROTOCOL)}
    for name, values in sorted(by_category.items()):
        figures[name] = mean_figure(100 * np.array(values), PROTOCOL)
    return {name: _without_nan(each) for name, each in figures.items()}


def _without_nan(found: Figure) -> Figure:
    """A single part has no deviation."""
    alone = found.low is not None and np.isnan(found.low)
    return figure(found.value, None, found.protocol) if alone else found


def parts(sheet: Image.Image, count: int) -> list[Image.Image]:
    """The pictures of a sheet, row by row."""
    columns = COLUMNS if count > 1 else 1
    side = sheet.width // columns
    corners = [(row * side, column * side) for row in range(columns) for column in range(columns)]
    return [sheet.crop((x, y, x + side, y + side)) for y, x in corners[:count]]


def read_results(path: str | Path) -> dict[str, Figure]:
    """The summary at the end of the official text file: the score and those of categories."""
    text = read_text(path, "it is what compute_dpg_bench.py --res-path wrote")
    number = r"([0-9]+(?:\.[0-9]+)?)"
    whole = re.search(rf"^DPG-Bench score: {number}\s*$", text, re.MULTILINE)
    if whole is None:
        raise DataError(f"{path} ends without a DPG-Bench score: was its run stopped?")
    figures = {"dpg": figure(float(whole[1]), None, OFFICIAL)}
    level = text.rpartition("L1 category scores:")[2].partition("L2 category scores:")[0]
    for name, value in re.findall(rf"^\s+(\w+): {number}\s*$", level, re.MULTILINE):
        figures[name] = figure(float(value), None, OFFICIAL)
    return figures
