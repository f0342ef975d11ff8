import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from opensana.datasets.emoji import fetch
from opensana.datasets.emoji.fetch import Package, find, pack, read_members, verify
from opensana.errors import DataError


def archive(path: Path, members: dict[str, bytes], *links: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for link in links:
            tar.addfile(link)
    return path


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def webp(name: str) -> bool:
    return name.endswith(".webp")


def test_only_wanted_members_are_read(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tgz", {"package/a.webp": b"picture", "package/run.js": b"code"})
    assert read_members(path, webp) == {"package/a.webp": b"picture"}


@pytest.mark.parametrize("name", ["../evil.webp", "package/../../evil.webp", "package/../../x.js"])
def test_a_member_that_leaves_the_archive_is_refused(tmp_path: Path, name: str) -> None:
    path = archive(tmp_path / "a.tgz", {name: b"x"})
    with pytest.raises(DataError, match="unsafe member"):
        read_members(path, webp)
    assert list(tmp_path.rglob("*evil*")) == []


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
@pytest.mark.parametrize("target", ["/etc/passwd", "a.webp"])
def test_links_are_refused(tmp_path: Path, kind: bytes, target: str) -> None:
    path = archive(tmp_path / "a.tgz", {"a.webp": b"x"}, link("b.webp", target, kind))
    with pytest.raises(DataError, match="unsafe member"):
        read_members(path, webp)


def test_sizes_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = archive(tmp_path / "a.tgz", {"a.webp": b"12345", "b.webp": b"12345", "c": b"12345"})
    for limit, value in (("MAX_MEMBER_BYTES", 4), ("MAX_TOTAL_BYTES", 9), ("MAX_MEMBERS", 2)):
        with monkeypatch.context() as patch:
            patch.setattr(fetch, limit, value)
            with pytest.raises(DataError):
                read_members(path, webp)
    assert len(read_members(path, webp)) == 2


def test_a_broken_archive_is_a_data_error(tmp_path: Path) -> None:
    (tmp_path / "a.tgz").write_bytes(b"not a tar")
    with pytest.raises(DataError, match="cannot be read"):
        read_members(tmp_path / "a.tgz", webp)


def test_the_digest_decides(tmp_path: Path) -> None:
    path = tmp_path / "thing-1.0.0.tgz"
    path.write_bytes(b"content")
    right = Package("thing", "1.0.0", hashlib.sha512(b"content").hexdigest())
    assert find(right, tmp_path) == path
    with pytest.raises(DataError, match="SHA-512"):
        verify(path, "0" * 128)


def test_a_missing_archive_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"npm pack emojibase-data@17\.0\.0"):
        find(fetch.CAPTIONS, tmp_path)


def test_without_npm_the_error_names_the_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DataError, match="--archives"):
        pack(fetch.PICTURES, tmp_path)


def test_scoped_names_become_file_names() -> None:
    assert fetch.PICTURES.file_name == "lobehub-fluent-emoji-3d-1.1.0.tgz"
