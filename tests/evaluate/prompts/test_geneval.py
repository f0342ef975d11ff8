"""GenEval's folders and results.

Also tests `evaluate/prompts/drawing.py` and `evaluate/prompts/lines.py`.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from opensana.cli import main
from opensana.errors import ConfigError, DataError, RequestError
from opensana.evaluate.prompts.drawing import Options
from opensana.evaluate.prompts.geneval import evaluate_geneval, read_tasks, summary
from opensana.evaluate.prompts.geneval_judge import Judge
from tests.evaluate.prompts.conftest import SIDE, Drawn
from tests.evaluate.prompts.test_geneval_judge import Boxes, found
from tests.tiny_clip import save_clip
from tests.tiny_detector import save_detector, yolos

TASKS = [
    {"tag": "single_object", "include": [{"class": "cat", "count": 1}], "prompt": "a cat"},
    {"tag": "single_object", "include": [{"class": "dog", "count": 1}], "prompt": "a dog"},
    {
        "tag": "colors",
        "include": [{"class": "cat", "count": 1, "color": "red"}],
        "prompt": "a red cat",
    },
]


@pytest.fixture
def tasks(tmp_path: Path) -> str:
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text("".join(json.dumps(task) + "\n" for task in TASKS))
    return str(path)


def test_the_folders_are_genevals(drawn: Drawn, tasks: str, tmp_path: Path) -> None:
    found = evaluate_geneval(Options("m", tasks, seed=100), tmp_path / "to")
    assert sorted(p.name for p in (tmp_path / "to/pictures").iterdir()) == [
        *("00000", "00001", "00002")
    ]
    folder = tmp_path / "to/pictures/00001"
    assert json.loads((folder / "metadata.jsonl").read_text()) == TASKS[1]
    samples = sorted((folder / "samples").iterdir())
    assert [path.name for path in samples] == [f"000{n}.png" for n in range(4)]
    assert [Image.open(path).getpixel((0, 0)) for path in samples] == [
        (104 + n, 7, 7) for n in range(4)
    ]
    sheet = Image.open(folder / "grid.png")
    assert sheet.size == (2 * SIDE, 2 * SIDE) and sheet.getpixel((SIDE, SIDE)) == (107, 7, 7)
    assert drawn.asked[4:8] == [("a dog", 104 + n) for n in range(4)]
    assert (found["prompts"], found["images"]) == (3, 12)
    assert "evaluate_images.py" in found["left_out"]["all figures"]


def test_drawing_resumes_and_a_limit_keeps_numbers_and_seeds(
    drawn: Drawn, tasks: str, tmp_path: Path
) -> None:
    drawn.fails_at = 4
    with pytest.raises(KeyboardInterrupt):
        evaluate_geneval(Options("m", tasks), tmp_path / "to")
    drawn.fails_at = None
    evaluate_geneval(Options("m", tasks), tmp_path / "to")
    assert [seed for _, seed in drawn.asked] == list(range(12)), "nothing is drawn twice"
    few = Drawn()
    few.asked = drawn.asked = []
    evaluate_geneval(Options("m", tasks, limit=2), tmp_path / "few")
    assert sorted(p.name for p in (tmp_path / "few/pictures").iterdir()) == ["00000", "00002"]
    assert [seed for _, seed in drawn.asked] == [0, 1, 2, 3, 8, 9, 10, 11]
    with pytest.raises(ConfigError, match="was begun with limit 2, got 3"):
        evaluate_geneval(Options("m", tasks, limit=3), tmp_path / "few")


def test_a_judges_lines_are_genevals(drawn: Drawn, tasks: str, tmp_path: Path) -> None:
    judge = Judge(Boxes(cat=[found(0)]))
    figures = evaluate_geneval(Options("m", tasks), tmp_path / "to", judge=judge)
    shares = {name: figure["value"] for name, figure in figures["figures"].items()}
    assert shares == {"overall": 0.5, "single_object": 0.5, "images": 0.5, "prompts": 0.5}
    assert {f["protocol"] for f in figures["figures"].values()} == {"GenEval-like, not comparable"}
    assert figures["left_out"] == {"colors": "colours need --clip"}
    judged = (tmp_path / "to/judged.jsonl").read_text().splitlines()
    assert len(judged) == 8 and json.loads(judged[4])["reason"] == "1 dog wanted, 0 there"
    assert json.loads((tmp_path / "to/figures.json").read_text()) == figures


def line(tag: str, prompt: str, correct: bool) -> dict[str, Any]:
    return {"tag": tag, "prompt": prompt, "metadata": prompt, "correct": correct}


def test_the_summary_is_genevals(tmp_path: Path, drawn: Drawn, tasks: str) -> None:
    """The mean over questions, not over pictures; a prompt counts if one picture is right."""
    counted = (("a", True), ("a", False), ("b", False), ("b", False))
    lines = [line("counting", prompt, correct) for prompt, correct in counted]
    lines += [line("colors", "c", True), line("colors", "d", True)]
    results = tmp_path / "results.jsonl"
    results.write_text("\n".join(map(json.dumps, lines)))
    found = evaluate_geneval(Options("m", tasks), tmp_path / "to", results=results)
    shares = {name: figure["value"] for name, figure in found["figures"].items()}
    assert shares == {
        "overall": (0.25 + 1) / 2,
        "counting": 0.25,
        "colors": 1,
        "images": 0.5,
        "prompts": 0.75,
    }
    counting = found["figures"]["counting"]
    deviation = (((0.5 - 0.25) ** 2 * 2) / 1 / 2) ** 0.5  # of the mean of two prompts
    assert counting["high"] - counting["low"] == pytest.approx(2 * 1.96 * deviation, rel=1e-3)
    assert counting["protocol"] == found["protocol"] == "GenEval's own tool"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; it is prompts/evaluation_metadata.jsonl"),
        ("[1]", "line 1 is no JSON object"),
        ('{"tag": "x"}', "line 1 has no tag and prompt"),
        ("[" * 99_999, "line 1 is no JSON object"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_tasks(path)


def test_a_missing_file_says_where_it_is(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no .*djghosh13/geneval"):
        read_tasks(tmp_path / "none")
    with pytest.raises(DataError, match="is no result of GenEval"):
        summary([{"tag": "x", "correct": 1, "metadata": "m"}], "p", "r.jsonl")
    with pytest.raises(RequestError, match="name a model"):
        Options("", "x")
    with pytest.raises(RequestError, match="images and limit must be 1 or more"):
        Options("m", "x", images=0)


def test_the_command_with_a_random_detector_and_clip(
    drawn: Drawn, tmp_path: Path, tasks: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["evaluate", "m", "--geneval", tasks, "--to", str(tmp_path / "to"), "--images", "1"]
    detector = save_detector(tmp_path / "yolos", yolos)
    judged = ["--detector", str(detector), "--clip", str(save_clip(tmp_path / "clip"))]
    assert main([*asked, *judged, "--device", "cpu", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert list(figures["figures"]) == ["overall", "single_object", "colors", "images", "prompts"]
    assert "objects by yolos@sha256:" in figures["protocol"] and "left_out" not in figures
    assert main([*asked, "--ask", "http://127.0.0.1/v1#m"]) == 2
    assert "--ask does not go with --geneval" in capsys.readouterr().err
    assert main([*asked, "--dpg", "x"]) == 2
    assert "--geneval does not go with --dpg" in capsys.readouterr().err
    assert main([*asked, "--clip", "c"]) == 2
    assert "--clip needs --detector" in capsys.readouterr().err
