"""Text beside a picture is used or named: files read and files named are all files.

Also tests `cli/data.py` and `datasets/report.py`.
"""

import json
import tempfile
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opensana.cli import main
from opensana.datasets.report import not_read
from opensana.datasets.rewrite import convert
from opensana.datasets.sources import open_source
from opensana.datasets.sources.beside import one_spelling
from opensana.datasets.writers import WRITERS
from opensana.label.captioner import CaptionSource
from opensana.label.journal import writing
from opensana.label.labels import Labels
from opensana.label.tables import read_column
from tests import tiny
from tests.datasets.hostile import animated, encoded, plain
from tests.datasets.sources.test_tar import shard

NFC = "caf\u00e9"
NFD = unicodedata.normalize("NFD", NFC)
PICTURE = encoded(plain())


def folder_of(path: Path, files: Iterable[str], **contents: str) -> Path:
    """Files that say their own name; contents are by name, with _ for the dot."""
    given = {name.replace("_", "."): text for name, text in contents.items()}
    for name in [*files, *given]:
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(given[name].encode() if name in given else content_of(name))
    return path


def content_of(name: str) -> bytes:
    match name.lower().rpartition(".")[2]:
        case "png" | "jpg":
            return PICTURE
        case "gif":
            return animated("GIF")
        case "json":
            return json.dumps({"caption": name}).encode()
        case _:
            return name.encode()


def found(folder: Path) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Captions by key, and why files were not read."""
    source = open_source(folder)
    captions = {r.key: [c.text for c in r.captions] for r in source.records}
    assert source.files_read + len(source.not_read) == len(files_in(folder))
    return captions, {file.path: file.reason for file in source.not_read}


def files_in(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir()}


ALONE, HIDDEN = "has no picture of its name", "is hidden"
# files -> captions by key, and the files that are not read
CASES: dict[str, tuple[list[str], dict[str, list[str]], dict[str, str]]] = {
    "a caption file of other trainers": (["0.png", "0.caption"], {"0": ["0.caption"]}, {}),
    "capitals": (["IMG_0.PNG", "IMG_0.TXT"], {"IMG_0": ["IMG_0.TXT"]}, {}),
    "capitals of JSON": (["0.png", "0.Json"], {"0": ["0.Json"]}, {}),
    "one accent spelt apart": ([f"{NFC}.png", f"{NFD}.txt"], {NFC: [f"{NFD}.txt"]}, {}),
    "one accent spelt together": ([f"{NFD}.png", f"{NFC}.json"], {NFD: [f"{NFC}.json"]}, {}),
    "both spellings stand there": (
        [f"{NFC}.png", f"{NFD}.png", f"{NFD}.txt"],
        {NFC: [], NFD: [f"{NFD}.txt"]},
        {},
    ),
    "the whole name of a picture": (
        ["0.png", "0.png.txt", "0.png.json"],
        {"0": ["0.png.txt", "0.png.json"]},
        {},
    ),
    "text, caption and JSON": (
        ["0.png", "0.txt", "0.caption", "0.json"],
        {"0": ["0.caption", "0.txt", "0.json"]},
        {},
    ),
    "dots in names": (
        ["22.05.png", "22.05.txt", "22.txt"],
        {"22.05": ["22.05.txt"]},
        {"22.txt": ALONE},
    ),
    "texts of no picture": (
        ["0.png", "1.txt", "captions/0.txt", "1.json", "1.caption"],
        {"0": []},
        dict.fromkeys(["1.txt", "captions/0.txt", "1.json", "1.caption"], ALONE),
    ),
    "another case of the name itself": (
        ["IMG_0.PNG", "img_0.txt"],
        {"IMG_0": []},
        {"img_0.txt": ALONE},
    ),
    "kinds that nobody reads": (
        ["0.png", "0.tags", "0.md", "captions.csv", "0.txt.bak", "README"],
        {"0": []},
        {
            "0.tags": "is of the kind .tags",
            "0.md": "is of the kind .md",
            "captions.csv": "is of the kind .csv",
            "0.txt.bak": "is of the kind .bak",
            "README": "has no suffix",
        },
    ),
    "what is hidden": (
        [
            "0.png",
            ".0.txt",
            "._0.png",
            ".git/a.png",
            "__MACOSX/0.png",
            "Thumbs.db",
            "x/desktop.ini",
        ],
        {"0": []},
        dict.fromkeys(
            [".0.txt", "._0.png", ".git/a.png", "__MACOSX/0.png", "Thumbs.db", "x/desktop.ini"],
            HIDDEN,
        ),
    ),
    "an archive beside pictures": (["0.png", "0.zip"], {"0": []}, {"0.zip": "is of the kind .zip"}),
}


@pytest.mark.parametrize(("files", "captions", "left"), CASES.values(), ids=CASES)
def test_what_stands_beside_a_picture(
    tmp_path: Path, files: list[str], captions: dict[str, list[str]], left: dict[str, str]
) -> None:
    assert found(folder_of(tmp_path, files)) == (captions, left)


def test_rows_and_files_of_one_picture(tmp_path: Path) -> None:
    rows = [
        {"file_name": "a.png"},
        {"file_name": "b.png", "text": "row"},
        {"file_name": f"{NFD}.png", "text": "accent"},
        {"file_name": "sub\\c.png", "text": "a name of Windows"},
    ]
    lines = "\n".join(map(json.dumps, rows))
    names = ["a.png", "a.txt", "b.png", "b.txt", "b.json", f"{NFC}.png", "sub/c.png"]
    captions, left = found(folder_of(tmp_path, names, metadata_jsonl=lines))
    assert captions == {
        "a": ["a.txt"],
        "b": ["row", "b.txt", "b.json"],
        NFC: ["accent"],
        "sub/c": ["a name of Windows"],
    }
    assert not left and not open_source(tmp_path).rejects


def test_a_text_that_was_changed_after_it_was_written_is_used(tmp_path: Path) -> None:
    row = json.dumps({"text": "old", "captions": [{"text": "old", "captioner": "vlm"}]})
    folder = folder_of(tmp_path, ["a.png"], a_txt="old", a_json=row)
    assert found(folder)[0] == {"a": ["old"]}
    (folder / "a.txt").write_text("new")
    assert found(folder)[0] == {"a": ["new", "old"]}


@pytest.mark.parametrize(
    ("row", "captions"),
    [
        ({"TEXT": "a cat"}, ["a cat"]),
        ({"Caption": ["a cat", "a pet"]}, ["a cat", "a pet"]),
        ({"text": "", "caption": "a cat"}, ["a cat"]),
        ({"text": "a cat", "TEXT": "other"}, ["a cat"]),
        ({"captions": "a cat"}, ["a cat"]),
        ({"captions": ["a cat"], "text": "repeated"}, ["a cat"]),
    ],
)
def test_fields_that_are_used(tmp_path: Path, row: dict[str, str], captions: list[str]) -> None:
    line = json.dumps({"file_name": "a.png", **row})
    assert found(folder_of(tmp_path, ["a.png"], metadata_jsonl=line))[0] == {"a": captions}
    assert not open_source(tmp_path).warnings


@pytest.mark.parametrize(
    "row", [{"description": "a cat"}, {"text": {"en": "a cat"}}, {"tags": ["a", "cat"]}]
)
def test_fields_that_nobody_reads_are_named(tmp_path: Path, row: dict[str, str]) -> None:
    line = json.dumps({"file_name": "a.png", "key": "a", **row})
    folder = folder_of(tmp_path / "set", ["a.png"], metadata_jsonl=line)
    path = shard(tmp_path / "s.tar", [("a.png", PICTURE), ("a.json", line.encode())])
    for place in (folder, path):
        (note,) = open_source(place).warnings
        assert f"the fields {next(iter(row))!r} are not read" in note.reason


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.sana(instruction="none").save(tmp_path_factory.mktemp("tiny") / "model")


def test_one_line_in_every_command(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["0.png", "0.txt", "1.txt", "2.txt", ".DS_Store", "0.tags"]
    folder = folder_of(tmp_path / "set", names, metadata_csv="file_name,note\n0.png,x\n")
    commands = [
        ["data", "inspect", str(folder)],
        ["data", "convert", str(folder), str(tmp_path / "out"), "--format", "folder"],
        ["encode", str(folder), "--model", str(model), "--to", str(tmp_path / "to")],
    ]
    line = (
        f"opensana: {folder}: 4 of 7 files not read: 2 x {ALONE} ('1.txt', '2.txt'); "
        f"{HIDDEN} ('.DS_Store'); is of the kind .tags ('0.tags')"
    )
    for words in commands:
        assert main(words) == 0
        assert line in capsys.readouterr().err.splitlines(), words
    assert main(["data", "inspect", str(folder), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["files read"] == 3 and figures["files not read"][ALONE] == 2
    assert [file["path"] for file in figures["not_read"]] == [
        ".DS_Store",
        "0.tags",
        "1.txt",
        "2.txt",
    ]


def test_many_files_are_still_one_line(tmp_path: Path) -> None:
    names = [f"{n}.txt" for n in range(50)] + [f"x.{suffix}" for suffix in "abcdefgh"]
    folder = folder_of(tmp_path, ["p.png", *names])
    (line,) = not_read(open_source(folder))
    assert "58 of 59 files not read: 50 x" in line and line.endswith("; 4 more kinds")
    assert "'0.txt', '1.txt', '10.txt', ...)" in line


def test_folders_of_shards_name_the_rest(tmp_path: Path) -> None:
    shard(tmp_path / "a.TAR", [("0.png", PICTURE)])
    names = ["a_VLM.json", "b.parquet", "README.md", "c.tar.gz", ".cache/x", "wids-meta.json"]
    source = open_source(folder_of(tmp_path, names))
    assert (len(source), source.files_read) == (1, 3)
    assert [file.path for file in source.not_read] == [
        ".cache/x",
        "README.md",
        "b.parquet",
        "c.tar.gz",
    ]
    assert [reject.path for reject in source.rejects] == ["c.tar.gz"], "a shard is lost"


@pytest.mark.parametrize("form", WRITERS)
def test_of_what_is_written_every_file_is_read(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    row = json.dumps({"captions": [{"text": "x", "captioner": "vlm", "score": 20.5}]})
    source = open_source(folder_of(tmp_path / "in", ["a.b.png", "c.png", "c.txt"], c_json=row))
    convert(source, tmp_path / "out", form, shard_size=1)
    written = open_source(tmp_path / "out")
    assert not written.not_read and written.files_read == len(files_in(tmp_path / "out"))
    (tmp_path / "out" / "left.txt").write_text("x")
    assert [file.path for file in open_source(tmp_path / "out").not_read] == ["left.txt"]


def test_pictures_without_a_label_are_counted(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of(tmp_path / "set", ["a.png", "a.txt", "b.png", "b.txt", "c.png", "c.txt"])
    maker = CaptionSource("eyes", "1", "What?", {})
    with writing(tmp_path / "labels") as labels:
        labels.register(maker)
        labels.add("captions", [{"key": key, "maker": maker.id, "text": "x"} for key in "az"])
    line = "no label of 2 of 3 pictures, such as 'b'"
    words = ["--labels", str(tmp_path / "labels")]
    out, to = str(tmp_path / "out"), str(tmp_path / "to")
    assert main(["data", "convert", str(folder), out, "--format", "jsonl", *words]) == 0
    assert line in capsys.readouterr().err
    assert main(["encode", str(folder), "--model", str(model), "--to", to, *words]) == 0
    assert line in capsys.readouterr().err


def test_tables_and_labels_know_both_spellings(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"file_name,c\n{NFD}.png,x\n")
    assert read_column(tmp_path / "t.csv", "c") == {NFC: "x"}
    labels = Labels(
        {"m": {"captioner": "vlm"}}, {NFD: {"m": "seen"}}, {(NFD, "m"): ("s", 1.0)}, {}, {}
    )
    record = open_source(folder_of(tmp_path / "set", [f"{NFC}.png"])).record(0)
    assert [(c.text, c.score) for c in labels.join(record).captions] == [("seen", 1.0)]


STEMS = st.sampled_from(
    ["a", "A", "a.b", NFC, NFD, "sub/a", ".a", "__MACOSX/a", ".x/a", "metadata"]
)
PICTURES = [".png", ".png", ".PNG", ".jpg", ".gif"]
TEXTS = [".txt", ".TXT", ".caption", ".json", ".png.txt", ".jpg.json", "_VLM.json"]
SUFFIXES = st.sampled_from([*PICTURES, *TEXTS, ".npz", ".csv", ".jsonl", "", ".txt~"])


def first_part(name: str) -> str:
    return one_spelling(Path(name).name.split(".")[0])


@settings(max_examples=100, deadline=None)
@given(st.sets(st.builds("{}{}".format, STEMS, SUFFIXES), max_size=14), st.data())
def test_files_read_and_files_named_are_all_files(names: set[str], data: st.DataObject) -> None:
    """Of every text that counts as read, its words are in a caption or its picture is refused."""
    with tempfile.TemporaryDirectory() as place:
        rows = data.draw(st.lists(st.sampled_from(sorted(names)), max_size=2)) if names else []
        table = "".join(json.dumps({"file_name": n, "text": f"row of {n}"}) + "\n" for n in rows)
        contents = {"metadata_jsonl": table} if "metadata.jsonl" in names else {}
        folder = folder_of(Path(place), names - {"metadata.jsonl", "metadata.csv"}, **contents)
        present, source = files_in(folder), open_source(folder)
        left = [file.path for file in source.not_read]
        assert len(set(left)) == len(left) and set(left) <= present
        assert source.files_read + len(left) == len(present)
        captions = {c.text for record in source.records for c in record.captions}
        refused = {first_part(reject.path) for reject in source.rejects}
        for name in present - set(left):
            is_text = name.lower().endswith((".txt", ".caption", ".json"))
            if is_text and first_part(name) not in refused:
                assert name in captions, (name, captions)
        assert not [text for text in captions if text in left], "not read and yet used"
