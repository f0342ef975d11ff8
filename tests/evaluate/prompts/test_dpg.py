"""DPG-Bench's pictures, questions and results, and a local server that answers.

Also tests `evaluate/prompts/dpg_judge.py`.
"""

import base64
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from opensana.cli import main
from opensana.errors import ConfigError, DataError, OpensanaError, RequestError
from opensana.evaluate.prompts.dpg import Item, Question, evaluate_dpg, parts, read_items
from opensana.evaluate.prompts.dpg_judge import Asked, Judge, is_yes
from opensana.evaluate.prompts.drawing import Options
from tests.evaluate.prompts.conftest import SIDE, Drawn
from tests.label.server import Handler, chat, serving

HEAD = "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple"
HEAD += ",question_natural_language\n"
ROWS = [
    ("COCO1", "a red cat", 1, "0", "entity - whole (cat)", "Is there a cat?"),
    ("COCO1", "a red cat", 2, "1", "attribute - color (cat, red)", "Is the cat red?"),
    ("whoops9", '"a dog, left of a cat"', 1, "0", "entity - whole (dog)", "Is there a dog?"),
    ("whoops9", '"a dog, left of a cat"', 2, "0", "entity - whole (cat)", "Is there a cat?"),
    ("whoops9", '"a dog, left of a cat"', 3, '"1, 2"', "relation (x)", "Is the dog left?"),
]


@pytest.fixture
def questions(tmp_path: Path) -> str:
    path = tmp_path / "dpg_bench.csv"
    rows = [f"{i},{t},k,{p},{d},b,c,{u!s},{q}" for i, t, p, d, u, q in quoted()]
    path.write_text(HEAD + "\n".join(rows) + "\n")
    return str(path)


def quoted() -> Iterator[tuple[Any, ...]]:
    for item, text, number, parents, kind, question in ROWS:
        yield item, text, number, parents, f'"{kind}"', question


def test_questions_are_read(questions: str, tmp_path: Path) -> None:
    coco, whoops = read_items(questions)
    assert (coco.name, coco.prompt) == ("COCO1", "a red cat")
    assert coco.questions[2] == Question("Is the cat red?", "attribute - color", (1,))
    assert whoops.prompt == "a dog, left of a cat" and whoops.questions[3].parents == (1, 2)
    path = tmp_path / "first.csv"
    path.write_text(Path(questions).read_text().replace("\n", "\n,,,not a number,,,,,\n", 1))
    assert read_items(path) == [coco, whoops], "a first row that is no question is skipped"


def test_a_no_makes_those_that_build_on_it_a_no() -> None:
    entity = Question("?", "entity", (0,))
    item = Item("i", "p", {1: entity, 2: Question("?", "x", (1,)), 3: Question("?", "x", (2,))})
    assert item.scores({1: True, 2: True, 3: True}) == {1: True, 2: True, 3: True}
    assert item.scores({1: False, 2: True, 3: True}) == {1: False, 2: False, 3: False}
    assert item.scores({1: True, 2: False, 3: True}) == {1: True, 2: False, 3: False}


def test_pictures_are_two_by_two(drawn: Drawn, questions: str, tmp_path: Path) -> None:
    found = evaluate_dpg(Options("m", questions, seed=10), tmp_path / "to")
    paths = sorted((tmp_path / "to/pictures").iterdir())
    assert [path.name for path in paths] == ["COCO1.png", "whoops9.png"]
    with Image.open(paths[1]) as sheet:
        assert sheet.size == (2 * SIDE, 2 * SIDE)
        reds = [part.getpixel((3, 3)) for part in parts(sheet, 4)]
    assert reds == [(14 + number, 7, 7) for number in range(4)]
    assert "compute_dpg_bench.py --image-root-path" in found["left_out"]["all figures"]
    evaluate_dpg(Options("m", questions, seed=10), tmp_path / "to")
    assert len(drawn.asked) == 8
    evaluate_dpg(Options("m", questions, images=1), tmp_path / "one")
    with Image.open(tmp_path / "one/pictures/COCO1.png") as picture:
        assert picture.size == (SIDE, SIDE)
    with pytest.raises(RequestError, match="at most 4, got 5"):
        evaluate_dpg(Options("m", questions, images=5), tmp_path / "five")


def answering(rule: Callable[[str], object]) -> tuple[Judge, Counter[str]]:
    asked: Counter[str] = Counter()

    def ask(requests: Asked) -> Iterator[tuple[str, object]]:
        for key, _, words in reversed(list(requests)):
            asked[words] += 1
            yield key, rule(words)

    return Judge("stub", ask), asked


def test_answers_are_kept(drawn: Drawn, questions: str, tmp_path: Path) -> None:
    options = Options("m", questions)
    judge, asked = answering(lambda words: "Yes." if "cat?" in words else "no")
    found = evaluate_dpg(options, tmp_path / "to", judge=judge)
    figures = {name: figure["value"] for name, figure in found["figures"].items()}
    assert figures["dpg"] == pytest.approx(100 * (1 / 2 + 1 / 3) / 2)
    assert figures == {
        "dpg": figures["dpg"],
        "attribute": 0,
        "relation": 0,
        "entity": pytest.approx(100 * 2 / 3),
    }
    assert found["protocol"] == "DPG-like, not comparable: answers by stub"
    assert set(asked.values()) == {4, 8} and len(asked) == 4
    assert evaluate_dpg(options, tmp_path / "to", judge=judge) == found
    assert asked.total() == 20, "nothing is asked twice"
    other, _ = answering(lambda words: "no")
    other.name = "another"
    with pytest.raises(ConfigError, match="holds answers of 'stub'"):
        evaluate_dpg(options, tmp_path / "to", judge=other)


def test_a_failure_stops_and_resumes(drawn: Drawn, questions: str, tmp_path: Path) -> None:
    failing, _ = answering(lambda words: "yes" if "dog" not in words else ValueError("busy"))
    with pytest.raises(OpensanaError, match=r"whoops9: no answer .busy.; the same"):
        evaluate_dpg(Options("m", questions), tmp_path / "to", judge=failing)
    judge, asked = answering(lambda words: "yes")
    found = evaluate_dpg(Options("m", questions), tmp_path / "to", judge=judge)
    assert found["figures"]["dpg"]["value"] == 100
    assert asked.total() == 12, "the first item is not asked again"


def test_yes() -> None:
    assert all(map(is_yes, ("yes", "Yes.", '"Yes, it is"', " YES")))
    assert not any(map(is_yes, ("no", "yesterday", "maybe yes", "")))


def test_the_official_results_are_read(drawn: Drawn, questions: str, tmp_path: Path) -> None:
    path = tmp_path / "dpg-bench_results.txt"
    path.write_text(
        "to/COCO1.png, 1.0, 0.5, 0.75\nModel: pictures\nL1 category scores:\n"
        "\tentity: 91.5\n\trelation: 80.25\nL2 category scores:\n\tentity - whole: 93.0\n"
        "Image path: to\nSave results to: x\nDPG-Bench score: 84.25\n"
    )
    found = evaluate_dpg(Options("m", questions), tmp_path / "to", results=path)
    values = {name: figure["value"] for name, figure in found["figures"].items()}
    assert values == {"dpg": 84.25, "entity": 91.5, "relation": 80.25}
    assert found["protocol"] == "DPG-Bench's own tool, mPLUG"
    path.write_text("to/COCO1.png, 1.0, 1.0\n")
    with pytest.raises(DataError, match="was its run stopped"):
        evaluate_dpg(Options("m", questions), tmp_path / "to", results=path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a,b\n1,2\n", "line 2 is no question; it is dpg_bench/dpg_bench.csv"),
        (HEAD + ",,,,,,,,\n" + "x,t,k,one,0,b,c,e,q\n", "line 3 is no question"),
        (HEAD + "../x,t,k,1,0,b,c,e,q\n", "odd item_id '../x'"),
        (HEAD + "x,t,k,1,0,b,c,e,\n", "no question"),
        (HEAD, "has no questions"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, row: str, message: str) -> None:
    path = tmp_path / "x.csv"
    path.write_text(row)
    with pytest.raises(DataError, match=message):
        read_items(path)


def test_the_command_asks_a_server(
    drawn: Drawn, questions: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It sends one picture of the four, and one question, and tries again when it is busy."""
    words: Counter[str] = Counter()
    reds: set[int] = set()

    def answer(handler: Handler, asked: int) -> bool:
        body = json.loads(handler.server.bodies[-1])
        picture, text = body["messages"][0]["content"]
        encoded = picture["image_url"]["url"].partition(",")[2]
        pixel: Any = Image.open(io.BytesIO(base64.b64decode(encoded))).getpixel((5, 5))
        words[text["text"]] += 1
        reds.add(pixel[0])
        if words.total() == 2:
            handler.say(b"{}", 429, Retry_After="0")
        else:
            handler.say(chat("Yes." if "cat" in text["text"] else "No"))
        return True

    command = ["evaluate", "m", "--dpg", questions, "--to", str(tmp_path / "to"), "--json"]
    with serving(answer) as server:
        assert main([*command, "--seed", "200", "--batch", "1", "--ask", f"{server.url}#tiny"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["figures"]["dpg"]["value"] == pytest.approx(100 * (1 + 1 / 3) / 2)
    assert found["protocol"].endswith("answers by tiny")
    assert "Is the cat red? Answer with yes or no alone." in words and words.total() == 21
    assert len(reds) > 4, "several pictures of both items; JPEG makes neighbours alike"
    assert main([*command, "--ask", "hf:folder"]) == 2
    assert "--ask is an address" in capsys.readouterr().err
