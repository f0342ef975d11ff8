"""The emoji set from its packages to the folder that training reads.

Also tests `datasets/emoji/dataset.py`.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from opensana.datasets.crops import PreparedPictures
from opensana.datasets.emoji import vocabulary
from opensana.datasets.emoji.dataset import EmojiData
from opensana.datasets.emoji.preparation import build, digest
from opensana.errors import DataError

Members = dict[str, bytes]


@pytest.fixture
def data(
    tmp_path: Path,
    picture_members: Members,
    caption_members: Members,
    monkeypatch: pytest.MonkeyPatch,
) -> EmojiData:
    monkeypatch.setattr(vocabulary, "HELD_OUT_FAMILIES", 1)
    return build(tmp_path / "emoji", pictures=picture_members, captions=caption_members)


def test_pictures_with_a_label_in_the_order_of_the_records(data: EmojiData) -> None:
    labels = [record.label for record in data.records]
    assert labels[:4] == ["red apple", "cat face", "cat", "red heart"]
    assert data.pictures.shape == (7, 256, 256, 4)
    assert [record.index for record in data.records] == list(range(7))
    assert tuple(data.pictures[0, 128, 128]) == (0, 200, 90, 255)
    assert tuple(data.pictures[0, 0, 0])[3] == 0


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85"])
def test_a_mark_in_a_caption_ends_no_record(data: EmojiData, mark: str) -> None:
    path = data.folder / "records.jsonl"
    path.write_text(path.read_text("utf-8").replace("red apple", f"red{mark}apple"), "utf-8")
    assert EmojiData.open(data.folder).records[0].label == f"red{mark}apple"
    split = data.records[0].split
    assert PreparedPictures(data.folder, split=split).names == [
        record.hexcode for record in data.split(split)
    ]


def test_a_picture_that_is_too_tall_is_fitted(data: EmojiData) -> None:
    picture = data.pictures[data.find("cat").index]
    assert picture[128, 128, 3] == 255
    assert picture[:, :4, 3].max() == 0


def test_no_sibling_of_a_held_out_emoji_is_in_training(data: EmojiData) -> None:
    held_out = {record.family for record in data.split("held_out")}
    assert len(held_out) == 1
    assert not held_out & {record.family for record in data.split("train")}
    assert not any(record.vocabulary for record in data.split("held_out"))


def test_the_vocabulary_and_its_names(data: EmojiData) -> None:
    assert {"red apple", "cat face", "red heart"} <= {r.label for r in data.vocabulary}
    assert not {"cat", "cook"} & {record.label for record in data.vocabulary}
    texts = [caption.text for caption in data.find("cat face").captions]
    assert "cat" in texts  # the whole cat is not in the vocabulary
    apple = data.find("red apple")
    assert apple.held_out_caption is not None
    assert apple.held_out_caption.text == "rosy fruit"
    assert apple.shortcodes["joypixels"] == ("apple", "rosy_fruit")
    assert (apple.group, apple.subgroup) == ("food", "food-fruit")


def test_skin_tones_share_tags_and_family(data: EmojiData) -> None:
    assert data.find("woman cook: dark skin tone").family == data.find("cook").family


def test_the_same_bytes_every_time(
    data: EmojiData, picture_members: Members, caption_members: Members
) -> None:
    names = ("pictures.npy", "records.jsonl", "manifest.json")
    first = [digest(data.folder / name) for name in names]
    again = build(data.folder, pictures=picture_members, captions=caption_members)
    assert [digest(again.folder / name) for name in names] == first
    assert sorted(path.name for path in data.folder.parent.iterdir()) == ["emoji"]
    assert again.manifest["sha256"]["pictures.npy"] == first[0]


def test_a_failure_leaves_nothing_behind(tmp_path: Path, caption_members: Members) -> None:
    broken = {"package/assets/1f34e.webp": b"no picture"}
    with pytest.raises(DataError, match="1F34E cannot be decoded"):
        build(tmp_path / "emoji", pictures=broken, captions=caption_members)
    assert list(tmp_path.iterdir()) == []


def test_wrong_packages_are_named(tmp_path: Path, caption_members: Members) -> None:
    with pytest.raises(DataError, match="right packages"):
        build(tmp_path / "emoji", pictures={}, captions=caption_members)
    with pytest.raises(DataError, match="caption package"):
        build(tmp_path / "emoji", pictures={}, captions={})


def test_a_folder_that_is_not_prepared_says_how(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"recipes/emoji/prepare\.py"):
        EmojiData.open(tmp_path)


def test_an_old_version_is_refused(data: EmojiData) -> None:
    path = data.folder / "manifest.json"
    path.write_text(json.dumps({"version": 0}))
    with pytest.raises(DataError, match="version 0"):
        EmojiData.open(data.folder)


def test_pictures_stay_on_disk(data: EmojiData) -> None:
    assert isinstance(data.pictures, np.memmap)
