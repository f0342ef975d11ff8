"""Tar shards: every hostile kind (D2); nothing is unpacked, unpickled or written.

Also tests `datasets/sources/archive.py`.
"""

import io
import json
import os
import pickle
import tarfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from opensana.datasets.record import Caption
from opensana.datasets.sources import open_source
from opensana.errors import DataError
from tests.datasets.hostile import encoded, plain
from tests.datasets.measured import run

PICTURE = encoded(plain())
Entry = tuple[str, bytes] | tarfile.TarInfo


def sample(key: str, text: str = "") -> list[Entry]:
    return [(f"{key}.png", PICTURE), (f"{key}.txt", (text or f"caption of {key}").encode())]


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def shard(path: Path, entries: Iterable[Entry]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                archive.addfile(entry)
            else:
                info = tarfile.TarInfo(entry[0])
                info.size = len(entry[1])
                archive.addfile(info, io.BytesIO(entry[1]))
    return path


def keys(path: Path) -> list[str]:
    return [record.key for record in open_source(path).records]


def test_samples_captions_and_bytes(tmp_path: Path) -> None:
    row = {"caption": "caption of b", "prompt": "unused", "facts": {"sharp": 2}, "width": 9}
    entries = [
        *sample("x/a", "one\ntwo"),
        *sample("b"),
        ("b.json", json.dumps(row).encode()),
        ("c.JPG", encoded(plain(), "JPEG")),
        ("c.cls", b"7"),
        ("d.json", json.dumps({"captions": [{"text": "t", "captioner": "vlm"}]}).encode()),
        ("d.txt", b"t"),
        ("d.webp", encoded(plain(), "WEBP")),
    ]
    source = open_source(shard(tmp_path / "00000.tar", entries))
    a, b, c, d = source.records
    assert (a.key, a.captions) == ("x/a", (Caption("one\ntwo"),))
    assert (b.captions, b.measurements, b.width) == ((Caption("caption of b"),), {"sharp": 2.0}, 48)
    assert c.captions == () and d.captions == (Caption("t", "vlm"),)
    assert [source.picture(k)[:4] for k in range(4)] == [PICTURE[:4]] * 2 + [
        b"\xff\xd8\xff\xe0",
        b"RIFF",
    ]
    assert [note.reason for note in source.warnings] == ["1 members of the kind .cls not read"]


def test_shards_that_count_from_zero(tmp_path: Path) -> None:
    for name in ("b", "a"):
        shard(tmp_path / f"{name}.tar", [*sample("0"), *sample("1")])
    assert keys(tmp_path) == ["0", "1", "b/0", "b/1"]


def test_a_key_twice_in_a_shard_is_refused(tmp_path: Path) -> None:
    entries = [*sample("a", "first"), *sample("b"), *sample("a", "second"), *sample("c")]
    source = open_source(shard(tmp_path / "s.tar", [*entries, *sample("c")]))
    assert [record.key for record in source.records] == ["a", "b", "c"]
    assert source.record(0).captions[0].text == "first"
    assert [reject.path for reject in source.rejects] == ["s.tar:a.png", "s.tar:c.png"]
    assert all("earlier sample" in reject.reason for reject in source.rejects)


def test_missing_parts(tmp_path: Path) -> None:
    entries: list[Entry] = [("a.png", PICTURE), ("b.txt", b"no picture"), *sample("c")]
    source = open_source(shard(tmp_path / "s.tar", entries))
    assert [(r.key, len(r.captions)) for r in source.records] == [("a", 0), ("c", 1)]
    assert [(r.path, r.reason) for r in source.rejects] == [("s.tar:b", "has no picture")]


class Canary:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, (str(self.path),))


HOSTILE = [
    ("../../escape.png", "leads out"),
    ("a/../../escape.txt", "leads out"),
    ("/tmp/escape.png", "absolute"),
    ("C:\\escape.png", "absolute"),
    ("..\\escape.png", "leads out"),
    ("canary.pkl", "pickle"),
    ("canary.pth", "pickle"),
    ("canary.PT", "pickle"),
]
SPECIAL = [
    (special("link.png", tarfile.SYMTYPE, "/etc/passwd"), "symbolic link"),
    (special("link.txt", tarfile.SYMTYPE, "a.txt"), "symbolic link"),
    (special("hard.png", tarfile.LNKTYPE, "a.png"), "hard link"),
    (special("zero.png", tarfile.CHRTYPE), "device"),
    (special("disk.png", tarfile.BLKTYPE), "device"),
    (special("pipe.png", tarfile.FIFOTYPE), "pipe"),
    (special("odd.png", b"Z"), "unknown type"),
]


def test_hostile_members(tmp_path: Path) -> None:
    folder, canary = tmp_path / "set", tmp_path / "canary"
    content = pickle.dumps(Canary(canary))
    entries: list[Entry] = [*sample("a"), *((name, content) for name, _ in HOSTILE)]
    entries += [info for info, _ in SPECIAL]
    shard(folder / "s.tar", [*entries, *sample("z")])
    before = sorted(tmp_path.rglob("*"))
    source = open_source(folder)
    assert [record.key for record in source.records] == ["a", "z"]
    expected = [*HOSTILE, *((info.name, reason) for info, reason in SPECIAL)]
    assert [reject.path for reject in source.rejects] == [f"s.tar:{name}" for name, _ in expected]
    for reject, (_, reason) in zip(source.rejects, expected, strict=True):
        assert reason in reject.reason
    out = tmp_path / "out"
    assert run("data", "convert", folder, out, "--format", "folder", "--max-bad", "1").code == 0
    after = {path for path in tmp_path.rglob("*") if out not in (path, *path.parents)}
    assert sorted(after) == before and not Path("/tmp/escape.png").exists()
    assert sorted(path.name for path in out.iterdir()) == ["a.png", "a.txt", "z.png", "z.txt"]


def test_the_canary_would_sing(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Canary(tmp_path / "canary")))
    assert (tmp_path / "canary").is_dir()


def test_a_cut_shard_gives_what_came_before(tmp_path: Path) -> None:
    path = shard(tmp_path / "s.tar", [*sample("a"), *sample("b"), *sample("c")])
    whole = path.read_bytes()
    with tarfile.open(path) as archive:
        places = {member.name: member.offset_data for member in archive}
    for end, expected, reason in [
        (places["c.png"] + 20, ["a", "b"], "cut off inside 'c.png'"),
        (places["b.txt"] - 200, ["a", "b"], "broken header|cannot be read"),
        (places["c.png"] - 512, ["a", "b"], "without an end mark"),
    ]:
        path.write_bytes(whole[:end])
        source = open_source(path)
        assert [record.key for record in source.records] == expected
        (reject,) = source.rejects
        assert reject.path == "s.tar"
        assert any(part in reject.reason for part in reason.split("|")), reject
    assert source.picture(1) == PICTURE


def test_a_garbage_header_ends_a_shard_and_no_other(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", [*sample("a"), *sample("b")])
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as archive:
        place = archive.getmember("b.png").offset
    content[place : place + 512] = b"\x5a" * 512
    path.write_bytes(content)
    shard(tmp_path / "b.tar", sample("c"))
    (tmp_path / "c.tar").write_bytes(b"no archive at all" * 100)
    (tmp_path / "d.tar").write_bytes(b"")
    source = open_source(tmp_path)
    assert [record.key for record in source.records] == ["a", "c"]
    assert [reject.path for reject in source.rejects] == ["a.tar", "c.tar", "d.tar"]
    assert f"at byte {place:,}" in source.rejects[0].reason


def test_a_shard_that_shrinks_later_is_named(tmp_path: Path) -> None:
    path = shard(tmp_path / "s.tar", sample("a"))
    source = open_source(path)
    path.write_bytes(path.read_bytes()[:540])
    with pytest.raises(DataError, match=r"s\.tar has lost the end of 'a\.png'"):
        source.picture(0)


def header(name: str, size: bytes, kind: bytes = b"0") -> bytes:
    """One header block by hand, with any size field."""
    info = tarfile.TarInfo(name)
    info.type = kind
    block = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    block[124:136] = size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


LIES = {
    "huge": header("bomb.png", b"\x80" + (1 << 60).to_bytes(11, "big")),
    "negative": header("back.png", b"\xff" * 4 + (-2048).to_bytes(8, "big", signed=True)),
    "pax": header("pax", b"\x80" + (1 << 33).to_bytes(11, "big"), tarfile.XHDTYPE),
    "longname": header("name", b"\x80" + (1 << 33).to_bytes(11, "big"), tarfile.GNUTYPE_LONGNAME),
    "global": header("global", b"77777777777\0", tarfile.XGLTYPE),
}


@pytest.mark.parametrize("block", LIES.values(), ids=LIES)
def test_lying_sizes(tmp_path: Path, block: bytes) -> None:
    path = lying(tmp_path / "s.tar", block)
    source = open_source(path)
    assert [record.key for record in source.records] == ["a"]
    assert source.rejects[0].path == "s.tar"


def lying(path: Path, block: bytes) -> Path:
    """A shard of 16 GiB, a hole, with a good sample before the block."""
    shard(path, sample("a"))
    with tarfile.open(path) as archive:
        archive.getmembers()
        end = archive.offset
    path.write_bytes(path.read_bytes()[:end] + block + bytes(1024))
    os.truncate(path, 1 << 34)
    return path


def test_hostile_shards_stay_below_a_gibibyte(tmp_path: Path) -> None:
    """In a process of its own, whose memory is measured."""
    for number, block in enumerate(LIES.values()):
        lying(tmp_path / f"{number}.tar", block)
    sparse_bombs(tmp_path / "sparse.tar")
    done = run("data", "inspect", tmp_path, "--full", "--json")
    assert done.code == 0 and done.peak < 1 << 30, (done.error, done.peak)
    assert json.loads(done.out)["pictures"] == len(LIES) + 1


def test_sparse_bombs(tmp_path: Path) -> None:
    source = open_source(sparse_bombs(tmp_path / "s.tar"))
    assert [record.key for record in source.records] == ["a"]
    assert [reject.reason for reject in source.rejects] == ["is a sparse file"] * 2


def sparse_bombs(path: Path) -> Path:
    sparse = special("bomb.png", tarfile.GNUTYPE_SPARSE)
    pax = tarfile.TarInfo("pax.png")
    pax.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "pax.png",
        "GNU.sparse.realsize": str(1 << 50),
    }
    pax.size = 512
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(sparse)
        archive.addfile(pax, io.BytesIO(b"1\n0\n1125899906842624\n".ljust(512, b"\0")))
        info = tarfile.TarInfo("a.png")
        info.size = len(PICTURE)
        archive.addfile(info, io.BytesIO(PICTURE))
    return path


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "A.TAR.GZ", "a.tar.zst"])
def test_packed_shards_are_explained(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x1f\x8b")
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(DataError, match="unpack it to a plain"):
            open_source(path)


def test_a_packed_shard_under_a_plain_name(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.png"))
    source = open_source(tmp_path)
    assert not len(source) and source.rejects[0].path == "a.tar"


def test_texts_beyond_the_limits(tmp_path: Path) -> None:
    entries: list[Entry] = [
        ("a.png", PICTURE),
        ("a.txt", b"x" * (1 << 20)),
        ("b.png", PICTURE),
        ("b.txt", b"cafe\0"),
        ("b.json", b"[1]"),
        ("c.png", PICTURE),
        ("c.txt", b"caf\xe9\0"),
    ]
    source = open_source(shard(tmp_path / "s.tar", entries))
    assert [[c.text for c in r.captions] for r in source.records] == [[], ["cafe"]]
    assert [note.path for note in source.warnings] == ["s.tar:a"] + ["s.tar:b"] * 2
    assert [reject.path for reject in source.rejects] == ["s.tar:c.png"]


def test_pictures_and_shards_together_are_ambiguous(tmp_path: Path) -> None:
    shard(tmp_path / "s.tar", sample("a"))
    (tmp_path / "b.png").write_bytes(PICTURE)
    with pytest.raises(DataError, match=r"holds pictures and also 's\.tar'"):
        open_source(tmp_path)
