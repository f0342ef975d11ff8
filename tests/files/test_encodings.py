"""Text in any encoding that a mark names is read; what is no text is refused and counted."""

import codecs
import io
import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from opensana.cli import main
from opensana.datasets.rewrite import convert
from opensana.datasets.sources import open_source
from opensana.errors import ConfigError, DataError
from opensana.files.encodings import decode_text, encoding_of, text_lines
from opensana.label.captioner import read_prompt
from opensana.label.tables import read_column
from tests import tiny
from tests.datasets import hostile
from tests.datasets.hostile import encoded, plain
from tests.datasets.sources.test_tar import PICTURE, shard

TEXT = "Ein Käfer, 雪, \U0001f34e"
MARKED = {
    "utf-8": TEXT.encode(),
    "utf-8 with its mark": codecs.BOM_UTF8 + TEXT.encode(),
    "utf-16-le": codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"),
    "utf-16-be": codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
    "utf-32-le": codecs.BOM_UTF32_LE + TEXT.encode("utf-32-le"),
    "utf-32-be": codecs.BOM_UTF32_BE + TEXT.encode("utf-32-be"),
}
BROKEN = {
    "latin-1": "café \xff".encode("latin-1"),
    "shift-jis": "雪の日".encode("shift-jis"),
    "half a surrogate pair": b"\xed\xa0\x80 cat",
    "utf-16 that is cut": codecs.BOM_UTF16_LE + "a cat".encode("utf-16-le")[:-1],
    "utf-16 with a lone surrogate": codecs.BOM_UTF16_BE + b"\xd8\x00\x00a",
    "utf-16 without its mark": "a cat".encode("utf-16-le"),
    "utf-32 beyond the last character": codecs.BOM_UTF32_LE + b"\xff\xff\xff\x7f",
    "a text whose end is cut": "雪".encode()[:-1],
}
marked = pytest.mark.parametrize("content", MARKED.values(), ids=MARKED)
broken = pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)


def captions(path: Path) -> list[list[str]]:
    source = open_source(path)
    assert not source.rejects and not source.warnings, (source.rejects, source.warnings)
    return [[caption.text for caption in record.captions] for record in source.records]


def folder_of(path: Path, **files: bytes) -> Path:
    """a.png, b.png, c.png and the files, whose names are written a_txt."""
    hostile.write(path, {f"{key}.png": encoded(plain()) for key in "abc"})
    for name, content in files.items():
        (path / name.replace("_", ".")).write_bytes(content)
    return path


@marked
def test_a_mark_is_honoured_wherever_text_is_read(tmp_path: Path, content: bytes) -> None:
    assert decode_text(content) == TEXT
    name, mark = encoding_of(content)

    def written(text: str) -> bytes:
        return content[:mark] + text.encode(name)

    row = {"file_name": "a.png", "text": TEXT}
    line = json.dumps(row, ensure_ascii=False)
    found = [[TEXT], [], []]
    assert captions(folder_of(tmp_path / "txt", a_txt=content)) == found
    assert captions(folder_of(tmp_path / "row", a_json=written(line))) == found
    jsonl = written(f"{line}\r\n{line.replace('a.png', 'b.png')}\r\n")
    assert captions(folder_of(tmp_path / "lines", metadata_jsonl=jsonl)) == [[TEXT], [TEXT], []]
    csv = written(f'file_name,text\r\na.png,"{TEXT}\r\n{TEXT}"\r\n')
    folder = folder_of(tmp_path / "csv", metadata_csv=csv)
    assert captions(folder) == [[f"{TEXT}\r\n{TEXT}"], [], []]
    assert read_column(folder / "metadata.csv", "text") == {"a": f"{TEXT}\r\n{TEXT}"}
    official = written(json.dumps({"a": {"caption": TEXT}}))
    assert captions(folder_of(tmp_path / "official", a_json=official)) == found
    (tmp_path / "prompt").write_bytes(content)
    assert read_prompt(tmp_path / "prompt") == TEXT
    entries = [
        ("a.png", PICTURE),
        ("a.txt", content),
        ("b.png", PICTURE),
        ("b.json", written(line)),
    ]
    assert captions(shard(tmp_path / "tar" / "s.tar", entries)) == [[TEXT], [TEXT]]
    (tmp_path / "tar" / "s_VLM.json").write_bytes(official)
    assert captions(tmp_path / "tar") == [[TEXT], [TEXT]]


def refused(path: Path) -> tuple[list[str], list[str]]:
    """The paths of the rejects, and the keys of the records."""
    source = open_source(path)
    assert all("be read" in reject.reason for reject in source.rejects), source.rejects
    return [reject.path for reject in source.rejects], [record.key for record in source.records]


@broken
def test_what_is_no_text_is_refused_with_its_picture(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError, match=r"is not UTF-|looks like UTF-16"):
        decode_text(content)
    for name in ("a_txt", "a_caption", "a_png_txt", "a_json"):
        folder = folder_of(tmp_path / name, **{name: content})
        assert refused(folder) == (["a.png"], ["b", "c"]), name
        entries = [(f"{key}.png", PICTURE) for key in "abc"] + [(name.replace("_", "."), content)]
        path = shard(tmp_path / f"{name}.tar", entries)
        assert refused(path) == ([f"{name}.tar:a.png"], ["b", "c"]), name
    (tmp_path / "prompt").write_bytes(content)
    with pytest.raises(ConfigError, match=r"prompt file .* (is not UTF|looks like UTF-16)"):
        read_prompt(tmp_path / "prompt")


LATIN = "café".encode("latin-1")


def test_a_row_that_is_no_text_is_refused_with_its_picture(tmp_path: Path) -> None:
    lines = [b'{"file_name": "%s.png", "text": "x"}\n' % key for key in (b"a", b"b", b"c")]
    lines[1] = lines[1].replace(b'"x"', b'"%s"' % LATIN)
    assert refused(folder_of(tmp_path / "lines", metadata_jsonl=b"".join(lines))) == (
        ["b.png"],
        ["a", "c"],
    )
    rows = [b"file_name,text\n", b'a.png,"x\ny"\n', b'b.png,"x\n%s"\n' % LATIN, b"c.png,x\n"]
    folder = folder_of(tmp_path / "csv", metadata_csv=b"".join(rows))
    assert refused(folder) == (["b.png"], ["a", "c"])
    with pytest.raises(DataError, match="line 5: is not UTF-8"):
        read_column(folder / "metadata.csv", "text")


def test_where_a_table_breaks_off_the_pictures_without_a_row_are_refused(tmp_path: Path) -> None:
    rows = codecs.BOM_UTF16_LE + "file_name,text\r\na.png,x\r\n".encode("utf-16-le") + b"\0\xd8"
    folder = folder_of(tmp_path / "cut", metadata_csv=rows + b"a\0\n\0")
    (folder / "a.txt").write_text("its own")
    paths, keys = refused(folder)
    assert paths[0] == "metadata.csv" and {"b.png", "c.png"} <= {*paths} and not {*keys} - {"a"}
    bare = "file_name,text\r\na.png,x\r\nb.png,y\r\nc.png,z".encode("utf-16-le")
    for name in ("metadata_csv", "metadata_jsonl"):
        paths, keys = refused(folder_of(tmp_path / name, **{name: bare}))
        assert paths == [name.replace("_", "."), "a.png", "b.png", "c.png"] and not keys


def test_a_comma_outside_quotes_is_no_silent_loss(tmp_path: Path) -> None:
    csv = b"file_name,text\na.png,a cat, on a mat\nb.png,a dog,\nc.png\n"
    source = open_source(folder_of(tmp_path, metadata_csv=csv))
    assert [(reject.path, "more fields" in reject.reason) for reject in source.rejects] == [
        ("a.png", True)
    ]
    assert [len(record.captions) for record in source.records] == [1, 0]


def test_files_of_the_released_code_that_are_no_text(tmp_path: Path) -> None:
    content = b'{"a": {"caption": "%s"}}' % LATIN
    folder = folder_of(tmp_path / "folder")
    for name in ("a_VLM.json", "d_VLM.json"):
        (folder / name).write_bytes(content)
    assert refused(folder) == (["a.png"], ["b", "c"])
    assert [file.path for file in open_source(folder).not_read] == ["d_VLM.json"]
    entries = [("a.png", PICTURE), ("b.png", PICTURE)]
    path = shard(tmp_path / "tar" / "00000.tar", entries)
    shard(tmp_path / "tar" / "00001.tar", entries)
    path.with_name("00000_VLM.json").write_bytes(content)
    source = open_source(tmp_path / "tar")
    assert [reject.path for reject in source.rejects] == ["00000.tar:a.png", "00000.tar:b.png"]
    assert len(source) == 2


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.usefixtures("own_cache")
def test_texts_of_a_parquet_file(tmp_path: Path) -> None:
    texts = [b"a cat", LATIN, MARKED["utf-16-le"]]
    pictures = [encoded(plain())] * 3
    for name, kind in (("bytes", pyarrow.binary()), ("texts", pyarrow.string())):
        column = pyarrow.array(texts[: 3 if name == "bytes" else 2], pyarrow.binary()).view(kind)
        table = pyarrow.table({"image": pictures[: len(column)], "caption": column})
        parquet.write_table(table, tmp_path / f"{name}.parquet")
    source = open_source(tmp_path / "bytes.parquet")
    assert [[c.text for c in r.captions] for r in source.records] == [["a cat"], [TEXT]]
    assert ["row 1" in reject.path for reject in source.rejects] == [True]
    source = open_source(tmp_path / "texts.parquet")
    assert [[c.text for c in r.captions] for r in source.records] == [["a cat"]]
    assert "is not UTF-8" in source.rejects[0].reason and len(source.rejects) == 1


def test_three_commands_refuse_and_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of(tmp_path / "set", a_txt=LATIN, b_txt=MARKED["utf-16-le"], c_txt=b"c")
    model = tiny.sana(instruction="none").save(tmp_path / "model")
    assert main(["data", "inspect", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["refused"] == 1
    commands = {
        "convert": ["data", "convert", str(folder), str(tmp_path / "out"), "--format", "jsonl"],
        "encode": ["encode", str(folder), "--model", str(model), "--to", str(tmp_path / "to")],
    }
    for name, words in commands.items():
        assert main(words) == 1, name
        assert "1 of 3" in capsys.readouterr().err, name
        assert main([*words, "--max-bad", "40%"]) == 0, name
    lines = (tmp_path / "to" / "rejects.jsonl").read_text().splitlines()
    assert [json.loads(line)["path"] for line in lines] == ["a.png"]
    assert captions(tmp_path / "out") == [[TEXT], ["c"]]


def test_lines_end_where_a_text_file_ends_them() -> None:
    text = "one\u2028still\x0bone\x0c\n two\r\nthree\rfour\n"
    lines = ["one\u2028still\x0bone\x0c\n", " two\r\n", "three\r", "four\n"]
    for mark, name in ((b"", "utf-8"), (codecs.BOM_UTF32_BE, "utf-32-be")):
        file = io.BytesIO(mark + text.encode(name))
        assert list(text_lines(file, most=100)) == [(line, "") for line in lines]
    with pytest.raises(DataError, match="line 1 has more than 5 characters"):
        list(text_lines(io.BytesIO(b"123456\n"), most=5))
    assert list(text_lines(io.BytesIO(b"12345\n"), most=6)) == [("12345\n", "")]


def test_what_is_written_is_utf8_whatever_was_read(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "set", a_txt=MARKED["utf-16-be"], b_txt=b"b", c_txt=b"c")
    convert(open_source(folder), tmp_path / "out", "folder")
    assert (tmp_path / "out" / "a.txt").read_bytes() == TEXT.encode()
