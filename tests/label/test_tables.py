"""Columns of a table as captioners, and a small CLIP that scores what they wrote.

Also tests `metrics/open_scorer.py` and `metrics/small_clip_score.py`.
"""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from opensana.cli import main
from opensana.errors import ConfigError, DataError, OpensanaError
from opensana.label.captioner import Captioner, Failure, Settings
from opensana.label.journal import read_caption_sources
from opensana.label.labels import Labels
from opensana.label.opening import open_captioner
from opensana.metrics.clip_score import ClipScorer
from opensana.metrics.open_scorer import open_scorer
from opensana.metrics.small_clip import Clip, ClipConfig
from opensana.metrics.small_clip_score import SmallClipScorer
from opensana.train.checkpoints.export import Export
from tests import tiny
from tests.label.folders import draw

JSONL = """\
{"key": "00000", "label": "red apple", "tags": "fruit, food"}
{"key": "00001", "label": " green\\tapple ", "tags": ""}
{"file_name": "00002.png", "label": null, "tags": "two words"}
"""
CSV = "file_name,label,tags\n00000.png,red apple,fruit\n00001.png,green apple,\n"
PICTURE = Image.new("RGB", (4, 4))


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    path = tmp_path / "captions.jsonl"
    path.write_text(JSONL)
    return path


def column(path: Path, name: str) -> Captioner:
    return open_captioner(f"table:{path}#{name}", Settings())


def test_each_picture_gets_its_row_and_others_are_passed_over(
    captions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = [(f"0000{index}", PICTURE) for index in range(4)]
    assert dict(column(captions, "label")(pictures)) == {
        "00000": "red apple",
        "00001": "green apple",
    }
    assert "label: no caption of 2 pictures, such as '00002'" in capsys.readouterr().err
    assert dict(column(captions, "tags")(pictures)) == {
        "00000": "fruit, food",
        "00002": "two words",
    }


def test_a_csv_is_read_alike_and_a_long_text_fails(tmp_path: Path) -> None:
    path = tmp_path / "metadata.csv"
    path.write_text(CSV.replace("fruit", "x" * 5000))
    assert dict(column(path, "label")([("00000", PICTURE)])) == {"00000": "red apple"}
    ((_, answer),) = column(path, "tags")([("00000", PICTURE)])
    assert isinstance(answer, Failure)


def test_the_words_make_the_version(captions: Path) -> None:
    before, tags = column(captions, "label").source, column(captions, "tags").source
    captions.write_text(JSONL.replace("food", "sweets"))
    assert column(captions, "label").source == before
    assert column(captions, "tags").source.id != tags.id


@pytest.mark.parametrize(
    ("text", "name", "error", "match"),
    [
        (JSONL, "lable", ConfigError, "no column 'lable'.*label"),
        ('{"label": "x"}\n', "label", DataError, "line 1 names no picture"),
        ('{"key": "a", "label": 3}\n', "label", DataError, "line 1.*is 3, expected a text"),
        ("{\n", "label", DataError, "line 1"),
    ],
)
def test_what_is_no_table_is_named(
    captions: Path, text: str, name: str, error: type[OpensanaError], match: str
) -> None:
    captions.write_text(text)
    with pytest.raises(error, match=match):
        column(captions, name)


def test_specs_without_a_file_or_a_column_are_refused(tmp_path: Path) -> None:
    for spec in ("table:", "table:file.csv", "table:file.csv#", "table:#label"):
        with pytest.raises(ConfigError, match="is no captioner"):
            open_captioner(spec, Settings())
    with pytest.raises(ConfigError, match="cannot read the captions"):
        column(tmp_path / "none.csv", "label")


@pytest.fixture(scope="module")
def small_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIP on the states of the tiny text encoder."""
    folder = tmp_path_factory.mktemp("clips") / "small"
    width = tiny.sana(instruction="none").text.hidden_size
    config = ClipConfig(size=8, widths=(8,), text_channels=width, text_width=8, dim=4)
    torch.manual_seed(0)
    Export(folder, config.to_dict(), Clip(config).half().state_dict()).write()
    return folder


def test_a_small_clip_is_opened_by_its_folder(
    small_clip: Path, clip_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    encoder = tiny.sana(instruction="none").text
    monkeypatch.setattr("opensana.metrics.small_clip_score.gemma3_270m_folder", lambda: tmp_path)
    monkeypatch.setattr(
        "opensana.metrics.small_clip_score.TextEncoder.load", lambda *_, **__: encoder
    )
    assert isinstance(open_scorer(str(small_clip), device="cpu"), SmallClipScorer)
    assert isinstance(open_scorer(str(clip_model), device="cpu"), ClipScorer)


def test_scores_are_a_hundred_cosines_and_long_captions_have_windows(small_clip: Path) -> None:
    encoder = tiny.sana(instruction="none").text
    scorer = SmallClipScorer(str(small_clip), device="cpu", encoder=encoder)
    pictures = [Image.new("RGB", (20, 30), colour) for colour in ("red", "blue")]
    long = "a cat. " * 200
    found = scorer(pictures, [["a cat", long], ["a red dog"]])
    assert [[s.windows > 1 for s in scores] for scores in found] == [[False, True], [False]]
    wanted = scorer.embed_images(pictures) @ scorer.embed_texts(["a cat", "a red dog"]).T
    assert found[0][0].value == pytest.approx(100 * float(wanted[0, 0]), abs=1e-4)
    assert found[1][0].value == pytest.approx(100 * float(wanted[1, 1]), abs=1e-4)


def test_the_command_takes_columns_beside_models(
    captions: Path, tmp_path: Path, small_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = tiny.sana(instruction="none").text
    monkeypatch.setattr("opensana.metrics.small_clip_score.gemma3_270m_folder", lambda: tmp_path)
    monkeypatch.setattr(
        "opensana.metrics.small_clip_score.TextEncoder.load", lambda *_, **__: encoder
    )
    folder, labels = draw(tmp_path / "pictures", 4), tmp_path / "labels"
    arguments = ["label", str(folder), "--to", str(labels), "--clip", str(small_clip)]
    for name in ("label", "tags"):
        arguments += ["--captioner", f"table:{captions}#{name}"]
    assert main([*arguments, "--device", "cpu"]) == 0
    assert main([*arguments, "--device", "cpu"]) == 0, "the same command goes on"
    found = Labels.open(labels).captions("00000")
    assert [(c.captioner, c.text) for c in found] == [
        ("label", "red apple"),
        ("tags", "fruit, food"),
    ]
    assert all(c.score is not None and c.scorer.startswith("small@sha256:") for c in found)
    assert len((labels / "captions.jsonl").read_text().splitlines()) == 4
    assert {json.dumps(maker["settings"]) for maker in read_caption_sources(labels).values()} == {
        "{}"
    }


def test_a_set_that_is_mostly_bad_is_not_labelled(
    captions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, labels = draw(tmp_path / "pictures", 3), tmp_path / "labels"
    (folder / "bad.png").write_bytes(b"x")
    arguments = ["label", str(folder), "--to", str(labels)]
    arguments += ["--captioner", f"table:{captions}#label"]
    assert main(arguments) == 1
    assert "1 of 4 samples cannot be used" in capsys.readouterr().err
    assert not labels.exists()
    assert main([*arguments, "--max-bad", "25%"]) == 0
