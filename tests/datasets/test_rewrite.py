"""Every form into every other: pictures byte for byte, captions, facts and keys as they were.

Also tests `datasets/filters.py`, `datasets/writers/folder.py`, `datasets/writers/forms.py`,
`datasets/writers/names.py`, `datasets/writers/official.py`, `datasets/writers/parquet.py`,
`datasets/writers/tar.py`, `datasets/sources/indexed.py` and `datasets/sources/official.py`.
"""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from opensana.datasets.record import Caption, Record
from opensana.datasets.rewrite import convert
from opensana.datasets.sources import open_source
from opensana.datasets.sources.indexed import Indexed
from opensana.errors import ConfigError, DataError
from opensana.label.captioner import CaptionSource
from opensana.label.journal import writing
from opensana.label.labels import own_caption_id
from tests.datasets import hostile
from tests.datasets.hostile import encoded, plain
from tests.datasets.measured import run

LOSSLESS = ("folder", "jsonl", "webdataset", "parquet")
RICH = Caption(
    'He said "雪",\nthen left. \U0001f34e \\ \u2028 end',
    captioner="vlm/large:7b",
    version="1.5",
    prompt="Describe\nthe picture.",
    settings={"temperature": 0.25, "stop": ["\n", "é"], "nested": {"a": None}},
    score=27.123456789,
    scorer="clip-vit-l-14",
)
SAMPLES: dict[str, tuple[bytes, tuple[Caption, ...], dict[str, float]]] = {
    "plain": (encoded(plain()), (Caption("a plain picture\nwith two lines"),), {}),
    "sub.folder/x.y": (encoded(plain("RGBA"), "WEBP"), (RICH, Caption("second")), {"sharp": 0.1}),
    "none": (encoded(plain(size=(90, 30)), "JPEG"), (), {}),
    "../../etc/passwd": (encoded(plain("L")), (Caption("hostile key"),), {"b": -1e-9}),
    "C:\\new\nline\0*": (encoded(plain()), (Caption("x", "a"), Caption("y", "a")), {}),
    "NONE": (hostile.long_text(), (Caption("x", score=12.5, scorer="s"),), {}),
    "meta_data": (encoded(plain()), (Caption("x", settings={"caption_type": "long"}),), {}),
    ".hidden": (encoded(plain()), (Caption("dot"),), {}),
    "金" * 100: (encoded(plain()), (Caption("long name"),), {}),
}


class Memory(Indexed):
    """Samples that stand in no file."""

    def __init__(self, samples: dict[str, tuple[bytes, tuple[Caption, ...], dict[str, float]]]):
        super().__init__("memory")
        self.pictures: list[bytes] = []
        for key, (picture, captions, facts) in samples.items():
            assert self.add(key, picture, key, captions=captions, measurements=facts)
            self.pictures.append(picture)

    def picture(self, index: int) -> bytes:
        return self.pictures[index]


def contents(source: Indexed) -> dict[str, tuple[Record, bytes]]:
    assert not source.rejects and not source.warnings, (source.rejects, source.warnings)
    return {source.record(k).key: (source.record(k), source.picture(k)) for k in range(len(source))}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("form", LOSSLESS)
def test_forms_that_keep_everything(tmp_path: Path, form: str) -> None:
    source, out = Memory(SAMPLES), tmp_path / "a" / "out"
    done = convert(source, out, form, shard_size=4)
    assert done.samples == len(SAMPLES) and not done.rejects
    assert contents(open_source(out)) == contents(source)
    assert {path.name for path in tmp_path.rglob("*")} & {"passwd.png"} == (
        {"passwd.png"} if form in ("folder", "jsonl") else set()
    )


def test_a_round_through_all_of_them(tmp_path: Path) -> None:
    source, expected = Memory(SAMPLES), contents(Memory(SAMPLES))
    for number, form in enumerate([*LOSSLESS, *reversed(LOSSLESS)]):
        folder = tmp_path / str(number)
        convert(source, folder, form, shard_size=2)
        source = open_source(folder)
        assert contents(source) == expected, form


@pytest.mark.parametrize("form", ["official", "official-tar"])
def test_the_released_layout(tmp_path: Path, form: str) -> None:
    captions = (
        Caption("the prompt\nof two lines", score=21.5),
        Caption("short", "VILA1-5-13B", settings={"caption_type": "short"}, score=25.0),
        Caption("long", "VILA1-5-13B", settings={"caption_type": "long"}, score=28.0),
        Caption("other", "InternVL2-26B", settings={"caption_type": "caption"}),
    )
    samples = {f"k{n}": (encoded(plain(size=(40, 40 + n))), captions, {}) for n in range(5)}
    source = Memory(samples)
    convert(source, tmp_path / "out", form, shard_size=2)
    expected = contents(source)
    found = contents(open_source(tmp_path / "out"))
    assert found.keys() == expected.keys()
    for key, (record, picture) in found.items():
        assert picture == expected[key][1]
        assert set(map(repr, record.captions)) == set(map(repr, captions))
        assert record.captions[0] == captions[0]


def test_files_of_the_released_folder(tmp_path: Path) -> None:
    captions = (Caption("p", score=20.0), Caption("v", "VLM", score=30.0), Caption("w", "VLM"))
    samples = {"k": (encoded(plain()), captions, {}), "lone": (encoded(plain()), captions[1:], {})}
    convert(Memory(samples), tmp_path / "out", "official")
    files = {path.name: path.read_text() for path in (tmp_path / "out").glob("*[!g]")}
    assert files["k.txt"] == "p" and files["lone.txt"] == "v"
    assert json.loads(files["k_VLM.json"]) == {"k": {"caption": "v", "caption_2": "w"}}
    assert json.loads(files["k_VLM_clip_score.json"]) == {"k": {"caption": 30.0}}
    assert json.loads(files["k_prompt_clip_score.json"]) == {"k": {"prompt": 20.0}}
    assert json.loads(files["meta_data.json"]) == {"img_names": ["k", "lone"]}
    lone = open_source(tmp_path / "out").record(1)
    assert [(c.text, c.captioner) for c in lone.captions] == [("v", "VLM"), ("w", "VLM")]


def test_labels_go_into_the_released_files(tmp_path: Path) -> None:
    hostile.write(tmp_path / "in", {"a.png": encoded(plain())})
    (tmp_path / "in" / "a.txt").write_text("own")
    maker = CaptionSource("org/eyes", "1", "What?", {"max_tokens": 3})
    score = {"key": "a", "scorer": "clip@1", "windows": 1}
    with writing(tmp_path / "labels") as labels:
        labels.register(maker)
        labels.add("captions", [{"key": "a", "maker": maker.id, "text": "seen"}])
        labels.add("scores", [score | {"maker": own_caption_id("own"), "score": 21.5}])
        labels.add("scores", [score | {"maker": maker.id, "score": 30.0}])
    words = ("data", "convert", tmp_path / "in", tmp_path / "out", "--format", "official")
    done = run(*words, "--labels", tmp_path / "labels")
    assert done.code == 0, done.error
    captions = open_source(tmp_path / "out").record(0).captions
    assert [(c.text, c.score) for c in captions] == [("own", 21.5), ("seen", 30.0)]
    assert (tmp_path / "out" / "a_prompt_clip_score.json").exists()
    assert len(list((tmp_path / "out").glob("a_*eyes*_clip_score.json"))) == 1


def test_files_of_the_released_shards(tmp_path: Path) -> None:
    captions = (Caption("p"), Caption("v", "VLM", score=30.0))
    samples = {f"k{n}": (encoded(plain()), captions, {}) for n in range(3)}
    out = tmp_path / "out"
    convert(Memory(samples), out, "official-tar", shard_size=2)
    index = json.loads((out / "wids-meta.json").read_text())
    assert index["__kind__"] == "SANA-WebDataset" and index["wids_version"] == 1
    sizes = [(out / f"0000{n}.tar").stat().st_size for n in range(2)]
    assert index["shardlist"] == [
        {"url": "00000.tar", "nsamples": 2, "filesize": sizes[0]},
        {"url": "00001.tar", "nsamples": 1, "filesize": sizes[1]},
    ]
    assert json.loads((out / "00001_VLM.json").read_text()) == {"k2": {"caption": "v"}}
    assert json.loads((out / "00000_VLM_clip_score.json").read_text()) == {
        "k0": {"caption": 30.0},
        "k1": {"caption": 30.0},
    }
    with tarfile.open(out / "00001.tar") as archive:
        member = archive.extractfile("k2.json")
        assert member is not None
        assert json.load(member) == {
            "file_name": "k2.png",
            "prompt": "p",
            "width": 48,
            "height": 40,
        }
    (out / "00001.tar").unlink()
    rejects = open_source(out).rejects
    assert [(r.path, r.reason) for r in rejects] == [
        ("wids-meta.json", "names '00001.tar', which is not there")
    ]


def test_an_official_folder_with_gaps(tmp_path: Path) -> None:
    hostile.write(tmp_path, {"a.png": encoded(plain()), "a_b.png": encoded(plain())})
    files = {
        "meta_data.json": {"img_names": ["a", "a_b", "gone"]},
        "a_b.json": {"a_b": {"t": "of a_b"}},
        "a_b_VLM.json": {"a": {"t": "of a, by b_VLM"}},
        "a_VLM.json": {"a": {"t": 3, "u": "of a"}},
        "a_VLM_clip_score.json": {"a": {"u": "no number"}},
    }
    for name, value in files.items():
        (tmp_path / name).write_text(json.dumps(value))
    source = open_source(tmp_path)
    found = {r.key: [(c.text, c.captioner, c.score) for c in r.captions] for r in source.records}
    assert found == {
        "a": [("of a", "VLM", None), ("of a, by b_VLM", "b_VLM", None)],
        "a_b": [("of a_b", "file", None)],
    }
    assert "'gone'" in source.rejects[0].reason and len(source.rejects) == 1
    assert "expected a text, got 3" in source.warnings[0].reason


def test_shards_are_the_same_each_time(tmp_path: Path) -> None:
    for name in "ab":
        convert(Memory(SAMPLES), tmp_path / name, "webdataset")
    a, b = ((tmp_path / name / "00000.tar").read_bytes() for name in "ab")
    assert a == b


def test_datasets_reads_what_is_written(tmp_path: Path) -> None:
    import datasets

    convert(Memory(SAMPLES), tmp_path / "out", "parquet", shard_size=4)
    files: list[Any] = sorted(str(path) for path in (tmp_path / "out").iterdir())
    assert len(files) == 3
    table = datasets.Dataset.from_parquet(files)
    assert isinstance(table[0]["image"], Image.Image) and table[0]["image"].size == (48, 40)
    assert table["text"][1] == RICH.text


def test_damage_that_only_reading_finds(tmp_path: Path) -> None:
    samples = {f"k{n}": (encoded(plain()), (), {}) for n in range(4)}
    convert(Memory(samples), tmp_path / "in", "folder")
    source = open_source(tmp_path / "in")
    (tmp_path / "in" / "k2.png").unlink()
    with pytest.raises(DataError, match="1 of 4 samples"):
        convert(source, tmp_path / "out", "jsonl")
    done = convert(source, tmp_path / "out", "jsonl", max_bad=0.25)
    assert done.samples == 3 and done.rejects[0].path == "k2.png"
    assert len(open_source(tmp_path / "out")) == 3


def test_where_it_does_not_write(tmp_path: Path) -> None:
    convert(Memory(SAMPLES), tmp_path / "in", "folder")
    source = open_source(tmp_path / "in")
    for place, reason in (("in", "exists already"), ("in/side", "lies inside")):
        with pytest.raises(DataError, match=reason):
            convert(source, tmp_path / place, "jsonl")
    with pytest.raises(ConfigError, match="did you mean 'parquet'"):
        convert(source, tmp_path / "out", "parkett")
    with pytest.raises(ConfigError, match="at least one"):
        convert(source, tmp_path / "out", "parquet", shard_size=0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no pictures"):
        convert(open_source(tmp_path / "empty"), tmp_path / "out", "jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "in"]


def test_on_the_command_line(tmp_path: Path) -> None:
    hostile.write(tmp_path / "in", {"a.png": encoded(plain()), "b.png": b"x"})
    (tmp_path / "in" / "a.txt").write_text("hello")
    rejects = tmp_path / "rejects.jsonl"
    words = ("data", "convert", tmp_path / "in", tmp_path / "out", "--format", "webdataset")
    done = run(*words, "--max-bad", "50%", "--rejects", rejects)
    assert (done.code, done.out) == (0, f"{tmp_path / 'out'}\n")
    assert "1 samples written, 1 refused" in done.error
    assert json.loads(rejects.read_text())["path"] == "b.png"
    with tarfile.open(fileobj=io.BytesIO((tmp_path / "out" / "00000.tar").read_bytes())) as archive:
        assert archive.getnames() == ["a.png", "a.txt", "a.json"]
    wrong = run(*words, "--max-bad", "2")
    assert wrong.code == 2 and "a share is" in wrong.error


def test_filters(tmp_path: Path) -> None:
    sizes = {"a": (48, 40), "b": (48, 40), "long": (90, 30), "small": (20, 20)}
    hostile.write(tmp_path / "in", {f"{k}.png": encoded(plain(size=s)) for k, s in sizes.items()})
    with writing(tmp_path / "labels") as labels:
        for number, (key, dhash) in enumerate(zip(sizes, ("0", "0", "ff", "ff00"), strict=True)):
            labels.add("facts", [{"key": key, "sharpness": 10.0 * number, "dhash": dhash}])
    words = ("data", "convert", tmp_path / "in", "--format", "jsonl")
    labelled = (*words, "--labels", tmp_path / "labels")

    def kept(*more: object) -> list[str]:
        out = tmp_path / "-".join(map(str, more))
        done = run(*labelled, out, *more)
        assert done.code == 0, done.error
        assert f"{4 - len(open_source(out))} filtered out" in done.error
        return [record.key for record in open_source(out).records]

    assert kept("--min-side", 25) == ["a", "b", "long"]
    assert kept("--max-aspect", 2) == ["a", "b", "small"]
    assert kept("--min-sharpness", 10) == ["b", "long", "small"]
    assert kept("--unique", "--max-aspect", 2) == ["a", "small"]
    none = run(*labelled, tmp_path / "none", "--min-side", 100)
    assert none.code == 1 and "'a.png' its shorter side has 40" in none.error
    assert not (tmp_path / "none").exists()
    lost = run(*words, tmp_path / "none", "--min-sharpness", 1)
    assert lost.code == 1 and "has no sharpness" in lost.error
    assert run(*words, tmp_path / "none", "--unique").code == 2
