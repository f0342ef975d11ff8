"""The folder of LoRAs: what is listed, what is refused and how, and that no name leaves it."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from opensana.errors import ConfigError, RequestError
from opensana.models.options import LoadOptions
from opensana.models.with_loras import WithLoras
from opensana.pipeline import Sana
from opensana.serve.jobs.order import LoraChoice
from opensana.serve.painting import loras
from opensana.serve.painting.loras import LONGEST_NAME, MOST_NAMED, LoraFolder
from opensana.weights.lora import PEFT_CONFIG, PEFT_FILE, Lora, check_fit, read_lora
from tests import tiny
from tests.lora_files import write_lora

TRANSFORMER = tiny.transformer()
SIDES = {
    name.removesuffix(".weight"): (len(weight), weight[0].numel())
    for name, weight in TRANSFORMER.named_parameters()
    if name.endswith(".weight") and weight.ndim > 1
}


def check(lora: Lora) -> None:
    check_fit(lora, SIDES)


def listed(folder: Path) -> LoraFolder:
    return LoraFolder(folder, check)


def names(found: LoraFolder) -> list[str]:
    return [one["name"] for one in found.view()]


def logged(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """What was said of each file."""
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    return {line["file"]: line.get("why") or line["note"] for line in lines}


def test_files_and_folders_with_one_are_listed(tmp_path: Path) -> None:
    file = write_lora(tmp_path / "film.safetensors", SIDES, rank=3)
    write_lora(tmp_path / "ink" / "pytorch_lora_weights.safetensors", SIDES)
    write_lora(tmp_path / "水彩 1.0" / PEFT_FILE, SIDES, prefix="base_model.model.")
    (tmp_path / "film.png").write_bytes(b"a picture of it")
    (tmp_path / ".git").mkdir()
    found = listed(tmp_path)
    assert names(found) == ["film", "ink", "水彩 1.0"]
    film = found.view()[0]
    assert film == {
        "name": "film",
        "sha256": read_lora(file).sha256,
        "rank": 3,
        "bytes": file.stat().st_size,
        "trigger_words": (),
    }
    for one in found.view():
        (choice,) = found.decide([LoraChoice(one["name"], 0.5)])
        assert found.read(choice).sha256 == one["sha256"] == choice.sha256


def test_settings_of_peft_beside_a_file_count_as_for_generate(tmp_path: Path) -> None:
    write_lora(tmp_path / "ink" / PEFT_FILE, SIDES, prefix="base_model.model.")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 6}
    (tmp_path / "ink" / PEFT_CONFIG).write_text(json.dumps(config))
    found = listed(tmp_path)
    mine, theirs = found.read(LoraChoice("ink")), read_lora(tmp_path / "ink")
    assert {one.strength for one in mine.layers.values()} == {3.0}
    for name, change in theirs.layers.items():
        assert torch.equal(mine.layers[name].product, change.product)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"modelspec.trigger_phrase": "flat emoji, thick lines"}, ("flat emoji", "thick lines")),
        ({"ss_tag_frequency": '{"10_a": {"cat": 3, "dog": 5}, "b": {"cat": 9}}'}, ("cat", "dog")),
        ({"ss_tag_frequency": "[1]"}, ()),
        ({"ss_tag_frequency": '{"a": {"cat": "x"}}'}, ()),
        ({"ss_tag_frequency": "[" * 10_000}, ()),
        ({"modelspec.trigger_phrase": "a\x00b, " + "c" * 500}, ()),
        ({"modelspec.trigger_phrase": ", ".join(map(str, range(99)))}, tuple(map(str, range(10)))),
    ],
    ids=range(7),
)
def test_trigger_words_are_those_of_the_metadata(
    tmp_path: Path, metadata: dict[str, str], words: tuple[str, ...]
) -> None:
    write_lora(tmp_path / "film.safetensors", SIDES, metadata=metadata)
    assert listed(tmp_path).view()[0]["trigger_words"] == words


# ------------------------------------------------------------------ what is not listed


class Evil:
    def __reduce__(self):
        return os.mkdir, ("unpickled",)


def tensors(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    key = "transformer.transformer_blocks.0.attn1.to_q"
    plain = {f"{key}.lora_A.weight": torch.ones(2, 16), f"{key}.lora_B.weight": torch.ones(16, 2)}
    return plain | {name.replace("__", "."): value for name, value in changes.items()}


def header(text: bytes, body: bytes = b"") -> bytes:
    return len(text).to_bytes(8, "little") + text + body


def linked(file: Path, to: str) -> None:
    file.symlink_to(to)


def shards(folder: Path) -> None:
    for name in "ab":
        write_lora(folder / f"{name}.safetensors", SIDES)


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "pickle.bin": (lambda file: file.write_bytes(pickle.dumps(Evil())), "may hold code"),
    "zip.pt": (lambda file: torch.save({"a": torch.ones(1)}, file), "may hold code"),
    "renamed.safetensors": (lambda file: file.write_bytes(pickle.dumps(Evil())), "damaged"),
    "empty.safetensors": (lambda file: file.write_bytes(b""), "damaged"),
    "short.safetensors": (lambda file: file.write_bytes(b"\x10"), "damaged"),
    "huge header.safetensors": (lambda file: file.write_bytes(b"\xff" * 8), "damaged"),
    "no json.safetensors": (lambda file: file.write_bytes(header(b"{" * 40)), "damaged"),
    "deep.safetensors": (lambda file: file.write_bytes(header(b"[" * 200_000)), "damaged"),
    "offsets.safetensors": (
        lambda file: file.write_bytes(
            header(b'{"a":{"dtype":"F32","shape":[9999999999],"data_offsets":[0,4]}}', b"abcd")
        ),
        "damaged",
    ),
    "no tensors.safetensors": (lambda file: save_file({}, file), "no tensors"),
    "other keys.safetensors": (lambda file: save_file({"x": torch.ones(2)}, file), "no key of"),
    "nan.safetensors": (
        lambda file: save_file({k: v * torch.nan for k, v in tensors().items()}, file),
        "NaN",
    ),
    "another model.safetensors": (
        lambda file: write_lora(file, {"transformer_blocks.9.attn1.to_q": (16, 16)}),
        "another architecture",
    ),
    "wide.safetensors": (
        lambda file: write_lora(file, {"transformer_blocks.0.attn1.to_q": (32, 16)}),
        "another architecture",
    ),
    "slow.safetensors": (
        lambda file: save_file(
            tensors(),
            file,
            metadata={"lora_adapter_metadata": '{"r": 2, "alpha_pattern": {"((a+)+)+z[": 1}}'},
        ),
        "no regular expression",
    ),
    "out.safetensors": (lambda file: linked(file, "/etc/passwd"), "link out of the folder"),
    "away.safetensors": (lambda file: linked(file, "../outside.safetensors"), "link out"),
    "nowhere.safetensors": (lambda file: linked(file, "nothing"), "No such file"),
    "round.safetensors": (lambda file: linked(file, "round.safetensors"), ""),
    "folder link": (lambda file: linked(file, "/etc"), "link out of the folder"),
    "two": (shards, "holds 2 files"),
    "none": (lambda file: file.mkdir(), "holds no"),
    "pipe.safetensors": (lambda file: os.mkfifo(file), "no plain file"),
    "inside": (
        lambda file: (file.mkdir(), linked(file / "a.safetensors", "../../outside.safetensors")),
        "link out",
    ),
    "a<b.safetensors": (lambda file: write_lora(file, SIDES), "rename it"),
    "a:b.safetensors": (lambda file: write_lora(file, SIDES), "rename it"),
    "a\nb.safetensors": (lambda file: write_lora(file, SIDES), "rename it"),
    f"{'a' * (LONGEST_NAME + 1)}.safetensors": (lambda file: write_lora(file, SIDES), "rename it"),
    "film": (lambda file: write_lora(file / "x.safetensors", SIDES), "listed"),
}


@pytest.mark.parametrize("name", BAD, ids=lambda name: repr(name)[:24])
def test_what_cannot_be_used_is_one_line_and_the_others_are_listed(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "loras"
    write_lora(tmp_path / "outside.safetensors", SIDES)
    write_lora(folder / "film.safetensors", SIDES)
    make, why = BAD[name]
    make(folder / name)
    found = listed(folder)
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    if name == "film":  # a folder and a file of one name: the first of them
        assert names(found) == ["film"] and "another LoRA 'film'" in said
        return
    assert names(found) == ["film"]
    line = json.loads(said)
    assert (line["event"], line["file"]) == ("lora_not_listed", name)
    assert why in line["why"], line
    assert str(tmp_path) not in line["why"] and "opensana-" not in line["why"]
    assert not (tmp_path / "unpickled").exists()


def test_what_is_too_large_is_not_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "film.safetensors"
    with file.open("wb") as sparse:
        sparse.truncate(loras.MOST_BYTES + 1)
    assert names(listed(tmp_path)) == []
    assert logged(capsys) == {"film.safetensors": "film.safetensors is larger than 2048 MiB"}


def test_a_folder_is_needed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no folder .*; name one with LoRA files"):
        listed(tmp_path / "loras")


# ------------------------------------------------------------------ names

HOSTILE = [
    "", " ", ".", "..", "/", "\\", "~", "*", "?", "%", "film ", " film", "FILM", "Film", "film.",
    "film\x00", "\x00film", "film\x00.safetensors", "film\n", "film\r\n", "film\t", "film\u200b",
    "ﬁlm", "fi\u0301lm", "film\ud800", "\ud800", "film.safetensors", "film.SAFETENSORS",
    "film/", "film\\", "./film", ".\\film", "film/.", "film/..", "film/../film", "../loras/film",
    "..\\loras\\film", "%2e%2e/loras/film", "..%2floras%2ffilm", "..%5cloras%5cfilm",
    "%252e%252e%252f", "..%c0%af", "..%ef%bc%8f", "....//film", "..;/film", "film%00", "film%2e",
    "../../etc/passwd", "/etc/passwd", "/etc/passwd\x00.safetensors", "etc/passwd", "//etc/passwd",
    "\\\\server\\share\\film", "//server/share/film", "\\\\?\\C:\\film", "C:\\film", "C:film",
    "file:///etc/passwd", "file://film", "http://127.0.0.1/film.safetensors", "hf://a/b/c",
    "s3://a/b", "data:,film", "javascript:alert(1)", "ftp://a/b", "gopher://a", "jar:file:///a",
    "/proc/self/environ", "/proc/self/fd/0", "/dev/zero", "/dev/stdin", "/dev/random", "CON",
    "NUL", "film:ads", "film::$DATA", "film|id", "film;id", "$(id)", "`id`", "${HOME}", "%HOME%",
    "$HOME/film", "~/film", "~root/film", "film > /tmp/x", "film && id", "'; DROP TABLE jobs; --",
    "\" OR 1=1", "<script>alert(1)</script>", "<lora:film:1>", "film:1", "film,film", "[film]",
    "{film}", "{{film}}", "{0.__class__}", "%s%s%s%n", "film'", 'film"', "film#", "film?x=1",
    "*.safetensors", "[a-z]ilm", "film{1,2}", "(film)", "^film$", ".*", "film$", "-film", "--film",
    "outside", "../outside", "../outside.safetensors", "loras/film", "link", "film" * 30,
    "a" * 100_000, "é" * 1000, "\u202efilm", "film\u2028", "\x1b[31mfilm", "ink", "None", "null",
]  # fmt: skip


def test_no_hostile_name_is_found_or_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "loras"
    write_lora(tmp_path / "outside.safetensors", SIDES)
    write_lora(folder / "film.safetensors", SIDES)
    found = listed(folder)

    def opened(*_: Any, **__: Any) -> Any:
        raise AssertionError("a file was looked at")

    for name in ("open", "stat", "lstat", "scandir", "listdir"):
        monkeypatch.setattr(os, name, opened)
    monkeypatch.setattr("builtins.open", opened)
    monkeypatch.setattr(Path, "open", opened)
    assert len(set(HOSTILE)) == len(HOSTILE) >= 100
    for name in HOSTILE:
        with pytest.raises(RequestError) as error:
            found.decide([LoraChoice(name)])
        message = str(error.value)
        assert message.startswith("the LoRA ") and message.endswith(
            "is not listed here; choose of: film"
        )
        assert len(message) < 500 and message.isprintable()


def test_choices_that_do_not_go_together(tmp_path: Path) -> None:
    for index in range(30):
        write_lora(tmp_path / f"l{index:02}.safetensors", SIDES, layers=("0.attn1.to_q",))
    found = listed(tmp_path)
    with pytest.raises(RequestError, match=r"the LoRA 'x' is not listed here; .*l19 and 10 more$"):
        found.decide([LoraChoice("x")])
    with pytest.raises(RequestError, match="the LoRA 'l01' is named twice"):
        found.decide([LoraChoice("l01"), LoraChoice("l02"), LoraChoice("l01", 0.5)])
    with pytest.raises(RequestError, match="9 LoRAs are named; the most is 8"):
        found.decide([LoraChoice(f"l{n:02}") for n in range(MOST_NAMED + 1)])
    with pytest.raises(RequestError, match=r"the LoRA 'l01' is another file now, .* of 'abc'"):
        found.decide([LoraChoice("l01", sha256="abc")])
    (tmp_path / "none").mkdir()
    with pytest.raises(RequestError, match="none is; start the server with --loras FOLDER"):
        LoraFolder(tmp_path / "none", check).decide([LoraChoice("x")])


# ------------------------------------------------------------------ files that change


def test_the_folder_is_listed_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    film, ink = tmp_path / "film.safetensors", tmp_path / "ink.safetensors"
    write_lora(film, SIDES)
    ink.write_bytes(b"half of it")
    found = listed(tmp_path)
    (old,) = found.decide([LoraChoice("film")])
    assert set(logged(capsys)) == {"ink.safetensors"}
    found.refresh()
    assert logged(capsys) == {}, "what was refused is not said again"
    assert names(found) == ["film"]
    write_lora(ink, SIDES)
    write_lora(film, SIDES, seed=2)
    found.refresh()
    assert names(found) == ["film", "ink"]
    with pytest.raises(RequestError, match="the LoRA 'film' is another file now"):
        found.read(old)
    film.unlink()
    found.refresh()
    with pytest.raises(RequestError, match="the LoRA 'film' is not listed here; choose of: ink"):
        found.read(old)


@pytest.mark.parametrize("damage", ["gone", "cut", "other", "pickle", "link"])
def test_a_file_that_changed_since_it_was_listed_is_one_line(tmp_path: Path, damage: str) -> None:
    film = write_lora(tmp_path / "film.safetensors", SIDES)
    found = listed(tmp_path)
    (choice,) = found.decide([LoraChoice("film")])
    if damage == "cut":
        os.truncate(film, film.stat().st_size // 2)
    elif damage == "other":
        write_lora(film, SIDES, seed=2)
    else:
        film.unlink()
    if damage == "pickle":
        film.write_bytes(pickle.dumps(Evil()))
    if damage == "link":
        film.symlink_to("/etc/passwd")
    message = r"^the LoRA 'film' (cannot be read: |is another file)"
    with pytest.raises(RequestError, match=message) as error:
        found.read(choice)
    assert str(tmp_path) not in str(error.value) and "\n" not in str(error.value)


def test_what_was_read_does_not_change_with_its_file(tmp_path: Path) -> None:
    """A mapped file that is cut short would end the process."""
    film = write_lora(tmp_path / "film.safetensors", SIDES)
    found = listed(tmp_path)
    lora = found.read(found.decide([LoraChoice("film")])[0])
    os.truncate(film, 0)
    assert all(change.product.isfinite().all() for change in lora.layers.values())


def test_a_base_model_checks_what_fits_it(tmp_path: Path) -> None:
    folder = tiny.sana(instruction="none").save(tmp_path / "model")
    options = LoadOptions(model=folder, device="cpu", dtype="float32")
    base = WithLoras(Sana.load(folder, device="cpu", dtype="float32"), options)
    assert base.sides == SIDES
    write_lora(tmp_path / "loras" / "film.safetensors", base.sides)
    write_lora(tmp_path / "loras" / "big.safetensors", {"proj_out": (8, 999)}, layers=("proj_out",))
    assert names(LoraFolder(tmp_path / "loras", base.check)) == ["film"]
