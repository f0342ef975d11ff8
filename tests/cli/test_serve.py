"""What `opensana serve` says of a wrong command line: one line, what to try, no traceback."""

import socket
from pathlib import Path

import pytest

from opensana.cli import main
from opensana.cli.serve import RANGES
from opensana.errors import ConfigError
from opensana.serve.gate.keys import NO_KEYS
from opensana.serve.jobs.store import Store, usual_folder
from opensana.serve.run import bind, serve
from opensana.serve.service import Service
from tests.serve.gradient import Gradient

KEYS = "me:0123456789abcdef\n"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("OPENSANA_CACHE", str(folder))
    return folder


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    """The exit code, and the line that says why, without what was said before it."""
    code = main(["serve", *map(str, words)])
    out, told = capsys.readouterr()
    (line,) = [one for one in told.splitlines() if not one.startswith("opensana: loading")]
    assert not out and "Traceback" not in line and "--debug" not in line
    return code, line.removeprefix("opensana: ")


@pytest.mark.parametrize("name", RANGES)
def test_a_number_that_no_server_can_work_with(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    flag, (least, most) = f"--{name.replace('_', '-')}", RANGES[name]
    wrong = [least - 1, most + 1] + (["nan"] if name in ("rate", "keep_days", "grace") else [])
    for value in wrong:
        code, line = refused(capsys, flag, value)
        assert code == 2 and line.startswith(f"{flag} must be {least:g} to {most:g}, got ")


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, line = refused(capsys, "--port", port)
    assert (code, "another --port" in line and str(port) in line) == (2, True), line


def test_a_port_that_another_took_while_the_model_was_loaded(tmp_path: Path) -> None:
    first = bind("127.0.0.1", 0)
    second = bind("127.0.0.1", first.getsockname()[1])  # so long as nobody listens there
    first.listen()
    service = Service(Gradient(), Store(tmp_path / "store"))
    with pytest.raises(ConfigError, match="another --port"):
        serve(service, second, keys=NO_KEYS, grace=1)
    first.close()


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.7"])
def test_an_address_that_is_not_this_machine_s(
    capsys: pytest.CaptureFixture[str], host: str
) -> None:
    code, line = refused(capsys, "--host", host, "--insecure", "--port", 0)
    assert code == 2 and host in line and "another --host" in line


def test_an_address_that_others_reach_needs_keys(capsys: pytest.CaptureFixture[str]) -> None:
    code, line = refused(capsys, "--host", "0.0.0.0", "--port", 0)
    assert code == 2 and "--keys" in line and "--insecure" in line


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        (b"\xff\x00", "no text in UTF-8"),
        (b"", "no key"),
        (b"me 0123456789abcdef", "line 1: write name:key"),
        (b"# mine\nme:short", "line 2: a key has at least 16 characters"),
        (2 * KEYS.encode(), "line 2: the name or the key is there already"),
    ],
)
def test_a_file_of_keys_that_is_none(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: bytes | None, words: str
) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)
    code, line = refused(capsys, "--keys", file, "--port", 0)
    assert code == 2 and str(file) in line and words in line and "0123456789" not in line


def test_a_folder_that_cannot_be_used(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("no folder")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "jobs.sqlite3").write_text("no data base, though long enough to be looked at" * 9)
    for folder in (file, file / "below", damaged, Path("/proc/none")):
        code, line = refused(capsys, "--folder", folder, "--port", 0)
        assert code == 2 and str(folder) in line and "--folder" in line


def test_a_model_that_is_not_there(capsys: pytest.CaptureFixture[str], cache: Path) -> None:
    for model in ("emoji", "/no/where"):
        code, line = refused(capsys, "--model", model, "--port", 0)
        assert code == 1 and f"'{model}'" in line and "emoji-256" in line
    assert not cache.exists(), "nothing is made for a model that is not there"


def test_one_server_of_a_model_has_its_jobs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, cache: Path
) -> None:
    folder = usual_folder("emoji-256")
    assert folder == cache / "serve" / "emoji-256"
    store = Store(folder)
    code, line = refused(capsys, "--port", 0)
    assert code == 2 and "another server (process " in line and "--folder" in line
    store.close()
    Store(folder).close()


def test_models_have_folders_of_their_own(tmp_path: Path) -> None:
    for name in ("a/model", "b/model"):
        (tmp_path / name).mkdir(parents=True)
    models = ["emoji-256", "owner/name", tmp_path / "a" / "model", tmp_path / "b" / "model"]
    folders = {usual_folder(model) for model in models}
    assert len(folders) == 4 and len({folder.parent for folder in folders}) == 1
    assert usual_folder(tmp_path / "a" / ".." / "a" / "model") in folders
