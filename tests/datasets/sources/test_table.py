"""Parquet files and hub data sets: any usual column of pictures, nothing read from outside.

Also tests `datasets/sources/hub.py`, `datasets/sources/parquet.py` and
`datasets/sources/tables.py`.
"""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from opensana.datasets.record import Caption
from opensana.datasets.sources import hub, open_source, table
from opensana.errors import DataError, MissingExtraError
from tests.datasets.hostile import encoded, plain

PICTURE = encoded(plain())


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def write(path: Path, **columns: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), path)
    return path


def test_bytes_with_captions(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.parquet",
        jpg=[PICTURE, b"", None, encoded(plain(size=(4, 4))), PICTURE],
        caption=["one\ntwo", "x", "x", "x", None],
        caption_vlm=["three", None, None, None, "\0"],
        facts=[None, None, None, None, json.dumps({"sharp": 1.5})],
    )
    source = open_source(path)
    first, last = source.records
    assert (first.key, last.key) == ("00000000", "00000004")
    assert first.captions == (Caption("one\ntwo"), Caption("three", "vlm"))
    assert last.captions == () and last.measurements == {"sharp": 1.5}
    assert source.picture(1) == PICTURE
    reasons = [reject.reason for reject in source.rejects]
    assert [r.split(";")[0] for r in reasons] == ["is an empty file", "has no picture", "is 4 x 4"]
    assert source.rejects[0].path == f"{path} row 1"


def test_an_image_column_and_keys(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features({"photo": datasets.Image(), "key": datasets.Value("string")})
    rows = [({"bytes": PICTURE, "path": "x.png"}, k) for k in ("k", "k", "m")]
    named = {"bytes": None, "path": "/etc/passwd"}
    photos = [photo for photo, _ in rows] + [named]
    columns = {"photo": photos, "key": ["k", "k", "m", "n"]}
    write_to = tmp_path / "sub" / "a.parquet"
    write_to.parent.mkdir()
    parquet.write_table(pyarrow.table(columns, schema=features.arrow_schema), write_to)
    source = open_source(tmp_path / "sub")
    assert [record.key for record in source.records] == ["k", "m"]
    assert source.picture(1) == PICTURE
    assert ["earlier sample" in r.reason or r.reason for r in source.rejects] == [
        True,
        "only names a picture",
    ]


def test_files_that_are_no_pictures(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no column of pictures.*got url, text"):
        open_source(write(tmp_path / "a.parquet", url=["http://x"], text=["y"]))
    (tmp_path / "b.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match=r"b\.parquet cannot be read as parquet"):
        open_source(tmp_path / "b.parquet")


def test_a_row_group_may_not_be_huge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet", image=[PICTURE] * 3)
    monkeypatch.setattr("opensana.datasets.sources.parquet.MOST_GROUP_BYTES", 100)
    with pytest.raises(DataError, match="row group"):
        open_source(path)


def test_img2dataset_leaves_a_table_beside_each_shard(tmp_path: Path) -> None:
    import io
    import tarfile

    write(tmp_path / "00000.parquet", url=["http://x"])
    (tmp_path / "00000_stats.json").write_text('{"count": 1, "status_dict": {"success": 1}}')
    row = {"caption": "a cat", "key": "000000007", "status": "success", "width": 48}
    with tarfile.open(tmp_path / "00000.tar", "w") as archive:
        parts = {"png": PICTURE, "txt": b"a cat", "json": json.dumps(row).encode()}
        for extension, content in parts.items():
            info = tarfile.TarInfo(f"000000007.{extension}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    (record,) = open_source(tmp_path).records
    assert (record.key, record.captions) == ("000000007", (Caption("a cat"),))


def test_hub_data_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[tuple[str, dict[str, Any]]] = []

    def load(name: str, **options: Any) -> Any:
        asked.append((name, options))
        rows = {"image": [{"bytes": PICTURE, "path": None}], "text": ["a cat"]}
        return datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())

    monkeypatch.setattr(datasets, "load_dataset", load)
    source = open_source("hf://datasets/owner/name@v1.0", split="test")
    assert asked == [("owner/name", {"revision": "v1.0", "split": "test"})]
    assert source.record(0).captions == (Caption("a cat"),) and source.picture(0) == PICTURE


def test_hub_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def fail(*_: object, **__: object) -> None:
        raise FileNotFoundError("no such data set")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match=r"cannot be loaded .*no such data set"):
        open_source("hf://datasets/owner/name")
    for wrong in ("hf://datasets/owner", "hf://datasets/../../etc", "hf://datasets/a/b/c"):
        with pytest.raises(DataError, match="is not of the form"):
            open_source(wrong)
    assert "trust_remote_code" not in Path(hub.__file__).read_text()


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"opensana\[data\]"):
        table.datasets()


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no data at .*hf://datasets/OWNER/NAME"):
        open_source(tmp_path / "none")
    (tmp_path / "a.xyz").write_text("")
    with pytest.raises(DataError, match="of no known kind"):
        open_source(tmp_path / "a.xyz")
