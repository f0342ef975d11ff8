"""GenEval (arXiv 2310.11513): its prompts, its folders, its results.

    prompts     evaluation_metadata.jsonl, a line of JSON a prompt: {"tag", "include", "prompt"}
    pictures    00000/metadata.jsonl, 00000/samples/0000.png ..., 00000/grid.png
    results     results.jsonl, a line a picture: {"filename", "tag", "correct", "metadata", ...}

The folders are those that its evaluate_images.py reads, the results those that it writes.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from opensana.errors import DataError
from opensana.evaluate.benchmark.figures import Figure, deviation_of_mean, figure, plain
from opensana.evaluate.folder import FIGURES, check_settings
from opensana.evaluate.prompts.drawing import Options, draw_missing, tiled
from opensana.evaluate.prompts.geneval_judge import PROTOCOL, Judge
from opensana.evaluate.prompts.lines import read_lines
from opensana.files.writing import atomic_folder, write_atomic, write_json
from opensana.workers.progress import progress

PICTURES, JUDGED = "pictures", "judged.jsonl"
OFFICIAL = "GenEval's own tool"
COLUMNS = 2
HOW_TO_GET = "it is prompts/evaluation_metadata.jsonl of the repository djghosh13/geneval"

Task = dict[str, Any]
"""A prompt with what must be in its pictures, as GenEval writes it."""


def read_tasks(path: str | Path) -> list[Task]:
    tasks = read_lines(path, HOW_TO_GET)
    for number, task in enumerate(tasks, 1):
        if not all(isinstance(task.get(name), str) for name in ("tag", "prompt")):
            raise DataError(f"{path}, line {number} has no tag and prompt; {HOW_TO_GET}")
    return tasks


def evaluate_geneval(
    options: Options,
    to: str | Path,
    *,
    judge: Judge | None = None,
    results: str | Path | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Draw into GenEval's folders; the figures of its own results, of a judge, or none.

    The figures are also written to `to/figures.json`.
    """
    tasks, folder = read_tasks(options.prompts), Path(to)
    rows, pictures = options.rows(len(tasks)), folder / PICTURES
    check_settings(folder, {"benchmark": "geneval"} | asdict(options))
    folders = {row: pictures / f"{row:05d}" for row in rows}

    def save(row: int, drawn: Sequence[Image.Image]) -> None:
        with atomic_folder(folders[row]) as new:
            (new / "samples").mkdir()
            (new / "metadata.jsonl").write_text(json.dumps(tasks[row]) + "\n", "utf-8")
            for number, picture in enumerate(drawn):
                picture.save(new / "samples" / f"{number:04d}.png")
            tiled(drawn, COLUMNS).save(new / "grid.png")

    prompts = [task["prompt"] for task in tasks]
    draw_missing(options, prompts, rows, lambda row: not folders[row].is_dir(), save, device=device)
    found: dict[str, Any] = {"prompts": len(rows), "images": options.images * len(rows)}
    if results is not None:
        lines = read_lines(results, "it is what evaluate_images.py --outfile wrote")
        found |= {"protocol": OFFICIAL, "figures": plain(summary(lines, OFFICIAL, results))}
    elif judge is not None:
        judge.check([tasks[row] for row in rows])
        lines = list(_judged(judge, {folders[row]: tasks[row] for row in rows}, folder / JUDGED))
        found |= {"protocol": judge.described, "figures": plain(summary(lines, PROTOCOL, JUDGED))}
        if left_out := judge.left_out([tasks[row] for row in rows]):
            found["left_out"] = left_out
    else:
        found["left_out"] = {
            "all figures": f"judge {pictures} by GenEval's evaluate_images.py and give its "
            "--outfile as --results, or give a --detector for figures that do not compare"
        }
    write_json(folder / FIGURES, found)
    return found


def _judged(judge: Judge, tasks: Mapping[Path, Task], path: Path) -> Iterator[Task]:
    """A line for each picture whose question the judge can answer; all are written at the end."""
    lines, report = [], progress("prompts judged")
    for done, (folder, task) in enumerate(tasks.items(), 1):
        for sample in sorted((folder / "samples").glob("*.png")) if judge.answers(task) else ():
            with Image.open(sample) as picture:
                correct, reason = judge(picture.convert("RGB"), task)
            line = {"filename": str(sample), "tag": task["tag"], "prompt": task["prompt"]}
            line |= {"correct": correct, "reason": reason, "metadata": json.dumps(task)}
            lines.append(line)
            yield line
        report(done, len(tasks))
    text = "".join(json.dumps(line) + "\n" for line in lines)
    write_atomic(path, partial(Path.write_text, data=text, encoding="utf-8"))


def summary(lines: Sequence[Task], protocol: str, where: object) -> dict[str, Figure]:
    """The mean of the questions' shares of right pictures, each share, and what its tool adds.

    Intervals treat the pictures of a prompt as one: they succeed and fail together.
    """
    by_tag: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for number, line in enumerate(lines, 1):
        kinds = {"tag": str, "metadata": str, "correct": bool}
        if not all(isinstance(line.get(name), kind) for name, kind in kinds.items()):
            raise DataError(f"{where}, line {number} is no result of GenEval: {str(line)[:80]}")
        by_tag[line["tag"]][line["metadata"]].append(line["correct"])
    if not by_tag:
        raise DataError(f"{where} holds no results")
    shares = {tag: _share(list(prompts.values()), protocol) for tag, prompts in by_tag.items()}
    deviations = [_deviation(list(prompts.values())) for prompts in by_tag.values()]
    known = [deviation for deviation in deviations if deviation is not None]
    whole = len(known) == len(deviations)
    deviation = float(np.sqrt(np.square(known).sum())) / len(known) if whole else None
    overall = float(np.mean([share.value for share in shares.values()]))
    prompts = [found for tag in by_tag.values() for found in tag.values()]
    return {
        "overall": figure(overall, deviation, protocol),
        **shares,
        "images": _share(prompts, protocol),
        "prompts": _share([[any(found)] for found in prompts], protocol),
    }


def _share(prompts: Sequence[Sequence[bool]], protocol: str) -> Figure:
    return figure(float(np.mean(np.concatenate(prompts))), _deviation(prompts), protocol)


def _deviation(prompts: Sequence[Sequence[bool]]) -> float | None:
    """Of the mean over prompts; None for a single prompt."""
    means = np.array([np.mean(found) for found in prompts])
    return deviation_of_mean(means) if len(means) > 1 else None
