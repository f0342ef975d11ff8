"""Which members of a shard make a sample: no picture and no text of a shard is lost unsaid."""

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opensana.cli import main
from opensana.datasets.sources import open_source
from opensana.datasets.sources.samples import group
from tests.datasets.hostile import animated
from tests.datasets.sources.test_tar import PICTURE, Entry, sample, shard

NFC = "b\u00e9"
NFD = unicodedata.normalize("NFD", NFC)


def shard_of(path: Path, *names: str) -> Path:
    """Every picture the same, every text its own name, every JSON a caption with its name."""
    contents = {"png": PICTURE, "jpg": PICTURE, "webp": PICTURE, "gif": animated("GIF")}
    entries: list[Entry] = []
    for name in names:
        words = name.encode()
        if name.lower().endswith(".json"):
            words = json.dumps({"caption": name}).encode()
        entries.append((name, contents.get(name.lower().rpartition(".")[2], words)))
    return shard(path / "s.tar", entries)


def found(path: Path) -> tuple[dict[str, list[str]], list[str], list[str]]:
    """Captions by key, the paths of the rejects, the remarks."""
    source = open_source(path)
    captions = {r.key: [c.text for c in r.captions] for r in source.records}
    return captions, [r.path for r in source.rejects], [note.reason for note in source.warnings]


DOTS = ("plain", "22.05", "v1.0_cat", "a.b/000", "a.b/0.0", "x...y", "Dr. No")


def test_dots_in_names_give_all_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = shard(tmp_path / "s.tar", [entry for key in DOTS for entry in sample(key)])
    assert found(path) == ({key: [f"caption of {key}"] for key in DOTS}, [], [])
    words = ("data", "convert", str(path), str(tmp_path / "out"), "--format", "webdataset")
    assert main([*words]) == 0
    assert "7 samples written, 0 refused" in capsys.readouterr().err
    written = open_source(tmp_path / "out")
    assert {r.key: r.captions[0].text for r in written.records} == {
        key: f"caption of {key}" for key in DOTS
    }


# names of members -> captions by key, rejects, remarks
CASES: dict[str, tuple[list[str], dict[str, list[str]], list[str], list[str]]] = {
    "WebDataset's further pictures": (
        ["0.jpg", "0.seg.png", "0.txt", "1.jpg", "1.seg.png", "1.txt"],
        {"0": ["0.txt"], "1": ["1.txt"]},
        [],
        ["2 members of the kind .seg.png not read"],
    ),
    "WebDataset's further texts": (
        ["0.jpg", "0.txt", "0.alt.txt", "0.meta.json"],
        {"0": ["0.txt"]},
        [],
        [f"1 members of the kind .{kind} not read" for kind in ("alt.txt", "meta.json")],
    ),
    "WebDataset's picture with a word": (
        ["0.image.png", "0.txt", "1.image.png", "1.json"],
        {"0": ["0.txt"], "1": ["1.json"]},
        [],
        [],
    ),
    "several pictures with words and none without": (
        ["0.before.png", "0.after.png", "0.txt", "1.png", "1.txt"],
        {"1": ["1.txt"]},
        ["0.before.png", "0.after.png", "0"],
        [],
    ),
    "pictures with words and texts of their own": (
        ["cat.png", "cat.txt", "cat.sleeping.png", "cat.sleeping.txt"],
        {"cat": ["cat.txt"], "cat.sleeping": ["cat.sleeping.txt"]},
        [],
        [],
    ),
    "a number between dots is no word": (
        ["22.png", "22.txt", "22.05.png", "22.06.png"],
        {"22": ["22.txt"], "22.05": [], "22.06": []},
        [],
        [],
    ),
    "two pictures of one key": (["0.jpg", "0.png", "0.txt"], {"0": ["0.txt"]}, ["0.png"], []),
    "the text before its pictures": (
        ["0.txt", "0.png", "0.json", "0.webp"],
        {"0": ["0.txt", "0.json"]},
        ["0.webp"],
        [],
    ),
    "members in any order": (
        ["1.txt", "0.png", "1.png", "0.txt"],
        {"0": ["0.txt"], "1": ["1.txt"]},
        [],
        [],
    ),
    "a picture of a kind that is refused": (
        ["0.gif", "0.txt", "1.GIF"],
        {},
        ["0.gif", "1.GIF"],
        [],
    ),
    "texts without a picture": (["0.txt", "0.json", "1.05.txt"], {}, ["0", "1.05"], []),
    "suffixes in capitals and of other tools": (
        ["0.PNG", "0.TXT", "1.png", "1.caption", "2.png", "2.png.txt"],
        {"0": ["0.TXT"], "1": ["1.caption"], "2": ["2.png.txt"]},
        [],
        [],
    ),
    "two spellings of one accent": ([f"{NFC}.png", f"{NFD}.txt"], {NFC: [f"{NFD}.txt"]}, [], []),
    "what a Mac adds": (
        ["0.png", "._0.png", "__MACOSX/._0.png", "0.txt", ".DS_Store", "a/Thumbs.db"],
        {"0": ["0.txt"]},
        [],
        ["4 members hidden not read"],
    ),
    "a text that comes twice": (
        ["0.png", "0.txt", "0.txt"],
        {"0": ["0.txt"]},
        [],
        ["1 members with a name that was there before not read"],
    ),
}


@pytest.mark.parametrize(("names", "captions", "rejects", "remarks"), CASES.values(), ids=CASES)
def test_members_that_are_a_sample(
    tmp_path: Path,
    names: list[str],
    captions: dict[str, list[str]],
    rejects: list[str],
    remarks: list[str],
) -> None:
    expected = captions, [f"s.tar:{name}" for name in rejects], remarks
    assert found(shard_of(tmp_path, *names)) == expected


NAMES = st.lists(
    st.builds(
        "{}{}".format,
        st.sampled_from(["a", "b/a", "a.b", "a.1", "a.b.c", ".a", NFC, NFD, "__MACOSX/a"]),
        st.sampled_from([".png", ".jpg", ".gif", ".txt", ".TXT", ".json", ".cls", ".png.txt", ""]),
    ),
    max_size=12,
)


@settings(deadline=None)
@given(NAMES)
def test_every_member_is_used_refused_or_counted(names: list[str]) -> None:
    grouped = group(names)
    taken = {name for sample in grouped.samples for name in sample.beside}
    pictures = {sample.index for sample in grouped.samples}
    assert len(pictures) == len(grouped.samples)
    left = [n for place, n in enumerate(names) if place not in pictures and n not in taken]
    named = [n for n in left if n in grouped.refused or n.rpartition(".")[0] in grouped.refused]
    again = len([n for place, n in enumerate(names) if n in taken and n in names[:place]])
    assert len(named) + grouped.not_read.total() >= len(left) + again
    assert not {names[place] for place in pictures} & grouped.refused.keys()
