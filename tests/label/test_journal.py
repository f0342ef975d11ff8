"""Journals that are killed, torn, damaged, shared or read while they grow.

Also tests `label/captioner.py`, `label/labels.py`, `label/stages.py` and `files/lock.py`.
"""

import json
import os
from pathlib import Path

import pytest

from opensana.datasets.record import Caption
from opensana.errors import DataError
from opensana.label import stages
from opensana.label.captioner import CaptionSource, Failure, Settings, single_line
from opensana.label.journal import all_lines, write_block, writing
from opensana.label.labels import Labels, labelled, own_caption_id
from tests.label.folders import (
    FolderSource,
    draw,
    expected,
    killed_many_times,
    open_pictures,
    open_stage,
)

MAKER = CaptionSource("eyes", "1", "What?", {"max_tokens": 3})


def line(key: str, text: str = "words") -> dict[str, str]:
    return {"key": key, "maker": MAKER.id, "text": text}


@pytest.mark.parametrize(
    ("kills", "total"),
    [(5, 200), pytest.param(20, 1000, marks=pytest.mark.slow)],
    ids=["5 of 200", "20 of 1000"],
)
def test_killed_at_random_every_picture_once(kills: int, total: int, tmp_path: Path) -> None:
    folder, labels = draw(tmp_path / "pictures", total), tmp_path / "labels"
    killed_many_times(folder, labels, "0.002", kills=kills, total=total)
    lines = [json.loads(text) for text in (labels / "captions.jsonl").read_text().splitlines()]
    assert len(lines) == total
    assert {entry["key"]: entry["text"] for entry in lines} == expected(folder)


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_torn_last_line_is_dropped_on_resume(cut: int, tmp_path: Path) -> None:
    with writing(tmp_path) as labels:
        labels.register(MAKER)
        labels.add("captions", [line("a"), line("b")])
    path = tmp_path / "captions.jsonl"
    data = path.read_bytes()
    path.write_bytes(data[:-cut])
    whole = 1 if cut < len(data) // 2 else 0
    assert len(Labels.open(tmp_path).texts) == whole, "a reader does not see a torn line"
    with writing(tmp_path) as labels:
        labels.add("captions", [line("a"), line("b")])
    assert path.read_bytes() == data


def test_a_long_torn_line_is_dropped(tmp_path: Path) -> None:
    with writing(tmp_path) as labels:
        labels.add("captions", [line("a")])
    with (tmp_path / "captions.jsonl").open("ab") as stream:
        stream.write(b"x" * 200_000)
    with writing(tmp_path) as labels:
        labels.add("captions", [line("b")])
    assert [entry["key"] for entry in all_lines(tmp_path, "captions")] == ["a", "b"]


@pytest.mark.parametrize("damage", [b"{}\n", b"\0\0\n", b'{"key": 1}\n', b"[" * 9999 + b"\n"])
def test_a_damaged_line_is_named(damage: bytes, tmp_path: Path) -> None:
    with writing(tmp_path) as labels:
        labels.add("captions", [line("a")])
    with (tmp_path / "captions.jsonl").open("ab") as stream:
        stream.write(damage)
    with pytest.raises(DataError, match=r"captions\.jsonl, line 2 is damaged"):
        Labels.open(tmp_path)


def test_one_line_of_each_identity(tmp_path: Path) -> None:
    with writing(tmp_path) as labels:
        labels.register(MAKER)
        labels.add("captions", [line("a", "first"), line("a", "second")])
    with writing(tmp_path) as labels:
        labels.add("captions", [line("a", "third")])
    (caption,) = Labels.open(tmp_path).captions("a")
    assert caption == Caption("first", "eyes", "1", "What?", {"max_tokens": 3})


def test_two_writers_are_refused(tmp_path: Path) -> None:
    with writing(tmp_path):
        with pytest.raises(DataError, match=f"process {os.getpid()}"), writing(tmp_path):
            pass
        assert Labels.open(tmp_path).texts == {}, "readers are not"
    with writing(tmp_path):
        pass


def test_blocks_are_read_at_once_and_folded_later(tmp_path: Path) -> None:
    with writing(tmp_path) as labels:
        labels.register(MAKER)
        labels.add("captions", [line("a", "journal")])
    (tmp_path / "blocks" / ".captions-two.jsonl.7.partial").write_bytes(b"{")
    write_block(tmp_path, "captions", "one", [line("b"), line("a", "block")])
    assert sorted(Labels.open(tmp_path).texts) == ["a", "b"]
    with writing(tmp_path) as labels:
        assert labels.has("captions", "b", MAKER.id)
    assert not list((tmp_path / "blocks").iterdir())
    lines = list(all_lines(tmp_path, "captions"))
    assert [(entry["key"], entry["text"]) for entry in lines] == [("a", "journal"), ("b", "words")]


def test_unreadable_pictures_are_rejects_until_they_are_mended(tmp_path: Path) -> None:
    folder, labels = draw(tmp_path / "pictures", 3), tmp_path / "labels"
    good = (folder / "00001.png").read_bytes()
    (folder / "00001.png").write_bytes(b"GIF89a")
    with writing(labels) as writer:
        _, failed = stages.run(open_stage(), open_pictures(folder), writer, allowed=1)
    assert list(failed) == ["00001"]
    ((key, maker), reason), *_ = Labels.open(labels).failed.items()
    assert (key, maker) == ("00001", open_stage().name)
    assert "cannot be read" in reason
    (folder / "00001.png").write_bytes(good)
    with writing(labels) as writer:
        stages.run(open_stage(), open_pictures(folder), writer, allowed=0)
    assert not Labels.open(labels).failed
    assert len(list(all_lines(labels, "captions"))) == 3


def test_labels_join_their_source(tmp_path: Path) -> None:
    folder, labels = draw(tmp_path / "pictures", 2), tmp_path / "labels"
    (folder / "00000.txt").write_text("from the file")
    own = {"key": "00000", "maker": own_caption_id("from the file"), "scorer": "clip@1"}
    with writing(labels) as writer:
        stages.run(open_stage(), open_pictures(folder), writer, allowed=0)
        writer.add("facts", [{"key": "00001", "sharpness": 3.5, "dhash": "00"}])
        writer.add("scores", [own | {"score": 21.5, "windows": 1}])
    source = labelled(FolderSource(folder), Labels.open(labels))
    assert len(source) == 2 and source.picture(0) == (folder / "00000.png").read_bytes()
    first, second = source.record(0), source.record(1)
    assert [c.text for c in first.captions] == ["from the file", expected(folder)["00000"]]
    assert (first.captions[0].score, first.captions[0].scorer) == (21.5, "clip@1")
    assert first.captions[1].captioner == "colours" and first.captions[1].score is None
    assert second.measurements == {"sharpness": 3.5}
    with pytest.raises(DataError, match="holds no labels"):
        Labels.open(tmp_path / "pictures")


def test_keys_of_any_bytes(tmp_path: Path) -> None:
    keys = ["a\nb", "\udcff", "\u2028", '"', "ü/🙂", ""]
    with writing(tmp_path) as labels:
        labels.add("captions", [line(key) for key in keys])
    assert list(Labels.open(tmp_path).texts) == keys


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        ("  A cat.\n\n On a mat.\t", "A cat. On a mat."),
        ("nul\0 and\x07 bell\u2028line", "nul and bell line"),
        ("lone \ud83d surrogate \U0001f642", "lone surrogate \U0001f642"),
        ("x" * 4000, "x" * 4000),
    ],
)
def test_captions_are_cleaned(text: str, caption: str) -> None:
    assert single_line(text) == caption
    assert single_line(caption) == caption


@pytest.mark.parametrize("text", ["", " \n\0", "\ud83d", "x" * 4001])
def test_what_is_no_caption(text: str) -> None:
    assert isinstance(single_line(text), Failure)


def test_a_makers_identity_is_everything_that_changes_words() -> None:
    settings = Settings()
    other = Settings(batch=1, timeout=1, requests_per_minute=3, device="cpu")
    assert settings.recorded == other.recorded
    ids = {
        CaptionSource(*fields).id
        for fields in (
            ("a/eyes", "1", "What?", {"n": 1}),
            ("b/eyes", "1", "What?", {"n": 1}),
            ("a/eyes", "2", "What?", {"n": 1}),
            ("a/eyes", "1", "Who?", {"n": 1}),
            ("a/eyes", "1", "What?", {"n": 2}),
        )
    }
    assert len(ids) == 5 and all(name.startswith("eyes-") for name in ids)
