"""A report: emoji-256 measured on a few pictures, side by side, as one page.

Also tests `cli/report.py`, `evaluate/report/runs.py`, `evaluate/report/page.py`,
`evaluate/report/tables.py` and `evaluate/report/sheets.py`.
"""

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from opensana.cli import main
from opensana.evaluate import evaluate_pictures
from opensana.evaluate.benchmark.judges import Judges
from opensana.evaluate.benchmark.run import Options, evaluate_benchmark
from opensana.evaluate.folder import Example, Shown, write_examples
from opensana.evaluate.report.tables import HIGHER, LOWER, _clearly_best, number_text
from opensana.files.writing import write_json
from opensana.pipeline import Sana
from tests.serve.test_browser import chromium  # noqa: F401

if TYPE_CHECKING:
    from playwright.sync_api import Browser

PROMPTS = {"red": "a red apple", "cat": "a cat face", "script": '<script>alert("x")</script>'}


class SmallNetwork(nn.Module):
    """Six features of the input instead of Inception's."""

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.cat([pixels.mean((2, 3)), pixels.std((2, 3))], 1)


def benchmark(folder: Path) -> Path:
    """Three pictures with prompts in MJHQ-30K's layout."""
    generator = np.random.default_rng(0)
    for number, key in enumerate(PROMPTS):
        path = folder / "imgs" / f"c{number // 2}" / f"{key}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    meta = {k: {"category": f"c{i // 2}", "prompt": t} for i, (k, t) in enumerate(PROMPTS.items())}
    (folder / "meta_data.json").write_text(json.dumps(meta))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """emoji-256 in one and in two steps, and its autoencoder, on three pictures."""
    root, threads = tmp_path_factory.mktemp("runs"), torch.get_num_threads()
    torch.set_num_threads(1)  # as in every test here
    pictures = benchmark(root / "benchmark")
    judges: Any = Judges(SmallNetwork())  # type: ignore[arg-type]
    sana = Sana.load("emoji-256", device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("opensana.evaluate.benchmark.features.for_inference", lambda net: net)
        patch.setattr(Sana, "load", lambda *_, **__: sana)  # once is enough
        for steps in (1, 2):
            options = Options("emoji-256", "", str(pictures), steps=steps, size=64, seed=5)
            evaluate_benchmark(options, root / f"steps-{steps}", judges, device="cpu")
    evaluate_pictures(["emoji-256"], pictures / "imgs", to=root / "decoder", size=64, device="cpu")
    torch.set_num_threads(threads)
    return [str(root / name) for name in ("steps-1", "steps-2", "decoder")]


class Reading(HTMLParser):
    """The tags, the text and every attribute that could refer to something."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.pictures: list[str] = []
        self.references: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            assert not name.startswith("on") and name != "style", "the policy forbids it"
            if tag == "img" and name == "src":
                self.pictures.append(value or "")
            elif name in ("src", "href", "srcset", "data", "action", "poster", "xlink:href"):
                self.references.append(value or "")

    def handle_data(self, data: str) -> None:
        self.text += data


def test_emoji_256_has_a_page(runs: list[str], tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    assert main(["report", *runs, "--to", str(page), "--side", "48"]) == 0
    html = page.read_text("utf-8")
    found = Reading(html)
    assert not found.references and "script" not in found.tags and "link" not in found.tags
    assert not re.search(r"https?://", html) and "url(" not in html and "@import" not in html
    # Three prompts with three columns, and twice the autoencoder's three with two.
    assert len(found.pictures) == 3 * 3 + 2 * 3 * 2
    for source in found.pictures:
        kind, _, data = source.partition(",")
        assert kind == "data:image/webp;base64"
        assert Image.open(io.BytesIO(base64.b64decode(data))).size == (48, 48)
    for words in ("steps-1", "steps-2", "FID", "SSIM", "same seed", "Worst pictures"):
        assert words in found.text
    assert PROMPTS["script"] in found.text, "it is text"


@pytest.mark.browser
@pytest.mark.slow
def test_a_browser_shows_it_without_a_complaint(
    chromium: "Browser",  # noqa: F811
    runs: list[str],
    tmp_path: Path,
) -> None:
    path = tmp_path / "report.html"
    assert main(["report", *runs, "--to", str(path)]) == 0
    page, complaints = chromium.new_page(), list[str]()
    page.on("console", lambda line: complaints.append(line.text))
    page.on("request", lambda asked: complaints.append(asked.url[:40]))
    page.goto(path.as_uri())
    sizes = page.evaluate("[...document.images].map(one => one.naturalWidth)")
    assert sizes == [64] * (3 * 3 + 2 * 3 * 2)
    padding = page.evaluate("getComputedStyle(document.querySelector('section')).paddingLeft")
    assert padding == "20px", "the policy lets the style in"
    asked = [line for line in complaints if not line.startswith("data:image/webp")]
    assert asked == [path.as_uri()[:40]]
    page.close()


def test_the_policy_allows_the_style_and_nothing_that_runs(runs: list[str], tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    assert main(["report", runs[0], "--to", str(page)]) == 0
    html = page.read_text("utf-8")
    style = re.search(r"<style>(.*)</style>", html, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy is not None
    assert f"style-src 'sha256-{digest}'" in policy[1]
    assert policy[1].startswith("default-src 'none'; img-src data:;")


def test_figures_are_json_beside_the_page(runs: list[str], tmp_path: Path) -> None:
    assert main(["report", *runs, "--to", str(tmp_path / "r.html"), "--title", "Mine"]) == 0
    value = json.loads((tmp_path / "r.json").read_text())
    assert value["title"] == "Mine"
    assert [run["name"] for run in value["runs"]] == ["steps-1", "steps-2", "emoji-256"]
    for run in runs[:2]:
        name = Path(run).name
        column = next(column for column in value["runs"] if column["name"] == name)
        figures = json.loads((Path(run) / "figures.json").read_text())
        assert column["figures"] == figures["figures"]
        assert column["categories"].keys() == {"c0"}, "one picture has no distance"
        assert column["facts"]["model"] == "emoji-256"
    first = value["sheets"][0]["rows"][0]
    assert first["text"] == "a red apple"
    assert {shown["seed"] for shown in first["columns"].values()} == {None, 5}


def run(folder: Path, *, seed: int = 0, keys: str = "ab", source: str = "b", **figures: Any) -> str:
    """A finished run of figures that are made up."""
    folder.mkdir(parents=True)
    write_json(folder / "settings.json", {"model": folder.name, "benchmark": source, "seed": seed})
    write_json(folder / "figures.json", {"pictures": len(keys), "figures": figures})
    picture = Image.new("RGB", (8, 8), "teal")
    rows = [Example(key, f"a {key}", {"drawn": Shown(picture, seed=seed)}) for key in keys]
    write_examples(folder, {"Evenly spaced": rows})
    return str(folder)


def fid(value: float, reach: float = 0.5, protocol: str = "sana") -> dict[str, Any]:
    return {"value": value, "low": value - reach, "high": value + reach, "protocol": protocol}


def test_values_of_two_protocols_stand_in_two_rows(tmp_path: Path) -> None:
    one = run(tmp_path / "one", fid=fid(6.0))
    two = run(tmp_path / "two", fid=fid(16.0, protocol="clean"), geneval=fid(0.6))
    page = tmp_path / "r.html"
    assert main(["report", one, two, "--to", str(page)]) == 0
    html = page.read_text("utf-8")
    rows = re.findall(r"<tr><th scope=\"row\">(.*?)</tr>", html, re.DOTALL)
    assert [re.split("<", row)[0] for row in rows[:3]] == ["FID", "FID", "geneval"]
    assert all(row.count("–</td>") == 1 for row in rows[:3])
    assert 'class="best"' not in html and "<svg" not in html


def test_questions_have_a_table_of_their_own(tmp_path: Path) -> None:
    one = run(tmp_path / "one", source="geneval", counting=fid(0.4, 0.05, "geneval"))
    two = run(tmp_path / "two", source="geneval", counting=fid(0.6, 0.05, "geneval"))
    page = tmp_path / "r.html"
    assert main(["report", one, two, "--to", str(page)]) == 0
    html = page.read_text("utf-8")
    assert "<h2>GenEval</h2>" in html and "<h2>Pictures of prompts" not in html
    assert re.search(r'class="best"[^>]*>0\.6000</b>', html), "more is better"
    write_json(tmp_path / "two" / "figures.json", {"prompts": 2, "left_out": {"all": "no judge"}})
    assert main(["report", one, two, "--to", str(page)]) == 0
    assert "no judge" in page.read_text("utf-8")


def test_a_value_is_marked_if_it_is_apart_from_all_others() -> None:
    near, apart = [fid(6.0), fid(6.8), None], [fid(6.0), fid(7.5), None]
    assert _clearly_best(near, LOWER) is None
    assert _clearly_best(apart, LOWER) == 0
    assert _clearly_best(apart, HIGHER) == 1
    assert _clearly_best(apart[:1], LOWER) is None
    assert _clearly_best(apart, "") is None
    assert _clearly_best([fid(6.0), {"value": 9.0, "protocol": "sana"}], LOWER) is None


def test_rows_are_those_that_all_runs_have(tmp_path: Path) -> None:
    one, two = run(tmp_path / "one", keys="abc"), run(tmp_path / "two", keys="bcd", seed=7)
    other = run(tmp_path / "other", keys="xy", source="elsewhere")
    page = tmp_path / "r.html"
    assert main(["report", one, two, other, "--to", str(page)]) == 0
    value = json.loads((tmp_path / "r.json").read_text())
    assert [[row["key"] for row in sheet["rows"]] for sheet in value["sheets"]] == [
        ["b", "c"],
        ["x", "y"],
    ]
    assert "Seeds differ within rows" in page.read_text("utf-8")


def test_wrong_use_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, empty = run(tmp_path / "one"), tmp_path / "empty"
    empty.mkdir()
    for flags, words in (
        ([one, one], "a run is named twice"),
        ([str(empty)], "has no settings.json: expected a finished run"),
        ([one, "--to", str(tmp_path / "r.pdf")], "end it in .html"),
        ([one, "--side", "9"], "side must be from 16 to 512, got 9"),
    ):
        assert main(["report", *flags]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
    assert not list(tmp_path.glob("r.*"))


def test_numbers_have_four_digits() -> None:
    numbers = (0.12345, 6.54321, 27.5612, 1234.56)
    assert [number_text(n) for n in numbers] == ["0.1235", "6.543", "27.56", "1234.6"]
