"""`opensana generate` with a stand-in model: what it asks for, prints, refuses and leaves."""

import json
from dataclasses import fields
from pathlib import Path

import pytest
from PIL import Image

from opensana.cli import main
from opensana.cli.generate import Generate
from opensana.drawing.picture import Picture
from opensana.errors import RequestError, WeightsError
from opensana.request import Request
from tests.cli.painted import PaintedSana, files, refused


def test_one_prompt_one_path(
    sana: PaintedSana, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["generate", "a red apple", "--seed", "7"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "out_7.png\n"
    assert captured.err == "opensana: loading emoji-256\n"
    assert files(tmp_path) == ["out_7.png"]
    assert sana.requests == [Request("a red apple", seed=7)]


def test_flags_reach_the_request_and_the_model(sana: PaintedSana) -> None:
    line = "generate x -n 2 --steps 3 --guidance 2 --solver euler --negative-prompt y"
    line += " --width 96 --height 32 --model m --device cpu --dtype fp32"
    line += " --revision r --variant fp16 --memory 2GiB --compile --kernels --binned --quantize w8"
    line += " --text-device cpu"
    assert main(line.split()) == 0
    expected = Request(
        "x", negative_prompt="y", width=96, height=32, steps=3, guidance=2.0, images=2,
        solver="euler", binned=True,
    )  # fmt: skip
    assert sana.requests == [expected]
    [load] = sana.loads
    assert load.pop("memory") == 2 * 2**30
    assert load == {
        "model": "m", "device": "cpu", "dtype": "fp32", "revision": "r", "variant": "fp16",
        "compile": True, "kernels": True, "transformer": None, "controlnet": None,
        "lora": None, "lora_scale": 1.0, "quantize": "w8", "text_device": "cpu",
        "offload": None, "graph": False,
    }  # fmt: skip


def test_defaults_are_those_of_the_request() -> None:
    flags = Generate()
    for field in fields(Request):
        if field.name != "prompt":
            assert getattr(flags, field.name) == field.default


def test_pattern_counts_and_names_seeds(sana: PaintedSana, tmp_path: Path) -> None:
    assert (
        main(["generate", "x", "-n", "2", "--seed", "5", "-o", "new/{index:02d}_{seed}.png"]) == 0
    )
    assert files(tmp_path / "new") == ["00_5.png", "01_6.png"]


def test_a_folder_gets_the_default_name(sana: PaintedSana, tmp_path: Path) -> None:
    assert main(["generate", "x", "--seed", "1", "-o", "pictures/"]) == 0
    assert files(tmp_path / "pictures") == ["out_1.png"]


def test_existing_files_are_kept(sana: PaintedSana, tmp_path: Path) -> None:
    for _ in range(3):
        assert main(["generate", "x", "--seed", "1"]) == 0
    assert files(tmp_path) == ["out_1-1.png", "out_1-2.png", "out_1.png"]


def test_overwrite_replaces_old_files_but_not_those_of_this_run(
    sana: PaintedSana, tmp_path: Path
) -> None:
    for _ in range(2):
        assert main(["generate", "x", "-n", "2", "-o", "a.png", "--overwrite"]) == 0
    assert files(tmp_path) == ["a-1.png", "a.png"]


def test_json_lines(sana: PaintedSana, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "a \N{RED APPLE}", "-n", "2", "--seed", "3", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["path"] for line in lines] == ["out_3.png", "out_4.png"]
    assert lines[1]["request"]["seed"] == 4
    assert lines[1]["request"]["prompt"] == "a \N{RED APPLE}"
    assert lines[1]["model"] == "painted"


def test_prompt_file(sana: PaintedSana, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\n\n  a dog \n", encoding="utf-8")
    assert main(["generate", "--prompt-file", "prompts.txt", "-o", "{index}.png"]) == 0
    assert [request.prompt for request in sana.requests] == ["a cat", "a dog"]
    assert files(tmp_path) == ["0.png", "1.png", "prompts.txt"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_prompt_file_in_the_encoding_of_its_mark(
    sana: PaintedSana, tmp_path: Path, encoding: str
) -> None:
    (tmp_path / "prompts.txt").write_bytes("ein Käfer\r\n雪\r\n".encode(encoding))
    assert main(["generate", "--prompt-file", "prompts.txt", "-o", "{index}.png"]) == 0
    assert [request.prompt for request in sana.requests] == ["ein Käfer", "雪"]


@pytest.mark.parametrize(
    "mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e"]
)
def test_a_prompt_ends_only_where_a_line_does(sana: PaintedSana, tmp_path: Path, mark: str) -> None:
    content = f"a cat{mark}with a hat\r\na dog\ra fish\n\na bird"
    (tmp_path / "prompts.txt").write_bytes(content.encode())
    assert main(["generate", "--prompt-file", "prompts.txt", "-o", "{index}.png"]) == 0
    prompts = [request.prompt for request in sana.requests]
    assert prompts == [f"a cat{mark}with a hat", "a dog", "a fish", "a bird"]


def test_the_line_of_a_wrong_prompt_is_counted_as_an_editor_does(
    never_loaded: PaintedSana, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_bytes(b"a\xe2\x80\xa8b\r\n\r\nc\n\xed\xa0\x80")
    assert "prompts.txt is not UTF-8" in refused(capsys, "generate", "--prompt-file", "prompts.txt")


def test_a_picture_is_drawn_again_from_its_png(sana: PaintedSana, tmp_path: Path) -> None:
    line = ["generate", 'a "b", c: d', "--seed", "9", "--steps", "4", "-n", "2", "-o", "a.png"]
    assert main(line) == 0
    assert main(["generate", "--from-png", "a-1.png", "-o", "again.png"]) == 0
    again = sana.requests[-1]
    assert (again.prompt, again.seed, again.steps, again.images) == ('a "b", c: d', 10, 4, 1)
    assert sana.loads[-1]["model"] == "painted"
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "a-1.png").read_bytes()


def test_flags_beside_from_png_win(sana: PaintedSana) -> None:
    assert main(["generate", "x", "--seed", "9", "--steps", "4", "-o", "a.png"]) == 0
    assert main(["generate", "--from-png", "a.png", "--steps", "20", "-m", "emoji-256"]) == 0
    again = sana.requests[-1]
    assert (again.seed, again.steps, sana.loads[-1]["model"]) == (9, 20, "emoji-256")


def test_switches_may_stand_beside_from_png(
    sana: PaintedSana, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "x", "-o", "a.png"]) == 0
    capsys.readouterr()
    line = "generate --from-png a.png -o a.png --overwrite --json --no-metadata"
    assert main(line.split()) == 0
    assert json.loads(capsys.readouterr().out)["path"] == "a.png"


def test_no_metadata(sana: PaintedSana, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "secret", "-o", "a.png", "--no-metadata"]) == 0
    with Image.open("a.png") as image:
        assert image.info == {}
    capsys.readouterr()
    assert "no opensana settings" in refused(capsys, "generate", "--from-png", "a.png")


def test_what_is_cut_is_said(sana: PaintedSana, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "word " * 50]) == 0
    assert "opensana: the prompt is too long" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("failure", "code"),
    [(KeyboardInterrupt(), 130), (WeightsError("broken"), 1), (RequestError("too much"), 2)],
)
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_pictures_that_were_done_are_kept_and_told(
    sana: PaintedSana,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    failure: BaseException,
    code: int,
    form: list[str],
) -> None:
    sana.failure, sana.painted_before_failure = failure, 5
    assert main(["generate", "x", "-n", "64", "--seed", "1", *form]) == code
    names = [f"out_{seed}.png" for seed in range(1, 6)]
    told = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["path"] for line in told] == names if form else told == names
    assert files(tmp_path) == names


def test_pictures_are_written_and_told_in_their_order(
    sana: PaintedSana,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    names, told = [f"{index}.png" for index in range(3)], ""
    paint = sana.paint

    def watched(request: Request, seed: int) -> Picture:
        nonlocal told
        told += capsys.readouterr().out
        there = files(tmp_path)
        assert there == names[: len(there)] == told.split()
        return paint(request, seed)

    monkeypatch.setattr(sana, "paint", watched)
    assert main(["generate", "x", "-n", "3", "-o", "{index}.png"]) == 0
    assert files(tmp_path) == names == (told + capsys.readouterr().out).split()


# ------------------------------------------------------------------ refused before loading


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to draw"),
        (["  "], "nothing to draw"),
        (["x", "--width", "100"], "width must be a multiple of 32, got 100; try 96 or 128"),
        (["x", "--steps", "0"], "steps must be 1 to 1000, got 0"),
        (["x", "--seed", "-1"], "leave it out for a random one"),
        (["x", "-o", "{sed}.png"], "did you mean 'seed'?"),
        (["x", "-o", "{seed.png"], "is no pattern"),
        (["x", "-o", "{seed:q}.png"], "is no pattern"),
        (["x", "-o", "a.jpg"], "pictures are PNG files"),
        (["x", "-o", "{seed}/a.png"], "placeholders belong in the file name"),
        (["x", "--prompt-file", "p.txt"], "not both"),
        (["--prompt-file", "missing.txt"], "cannot read --prompt-file 'missing.txt'"),
        (["--from-png", "missing.png"], "missing.png"),
        (["x", "--setps", "3"], "--steps"),
        (["x", "--memory", "4"], "'4' is no size of memory; write it as 4GiB or 800MB"),
        (["x", "--solver", "eular"], "euler"),
        (["x", "--guidance", "strong"], "strong"),
        (["x", "--image", "missing.png"], "there is no image 'missing.png'"),
        (["x", "--mask", "missing.png"], "mask was given without a picture"),
        (["x", "--strength", "0.5"], "strength was given without a picture"),
        (["x", "--width", "8999", "--binned"], "width must be 32 to 8192, got 8999; try 8192"),
        (["x", "--strength", "0"], "strength must be above 0 and at most 1, got 0.0; try 0.6"),
    ],
)
def test_wrong_requests_are_refused_before_the_model_loads(
    never_loaded: PaintedSana,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    assert message in " ".join(refused(capsys, "generate", *arguments).split())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n \n", "holds no prompt"),
        (b"fine\n\xff\n", "not UTF-8 text (byte 6)"),
    ],
)
def test_bad_prompt_files(
    never_loaded: PaintedSana,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    content: bytes,
    message: str,
) -> None:
    (tmp_path / "p.txt").write_bytes(content)
    assert message in refused(capsys, "generate", "--prompt-file", "p.txt")


def test_a_bad_line_of_a_prompt_file_is_named(
    never_loaded: PaintedSana, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "p.txt").write_text("fine\n", encoding="utf-8")
    message = refused(capsys, "generate", "--prompt-file", "p.txt", "--width", "33")
    assert "p.txt line 1: width must be a multiple of 32" in message


def test_an_output_folder_that_is_a_file(
    never_loaded: PaintedSana, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "taken").touch()
    message = refused(capsys, "generate", "x", "-o", "taken/out.png")
    assert "cannot write to the output folder 'taken'" in message


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder nobody can write to")
def test_an_output_folder_that_cannot_be_written(
    never_loaded: PaintedSana, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(capsys, "generate", "x", "-o", "/proc/self/out.png")
    assert "cannot write to the output folder '/proc/self'" in message


def test_the_text_encoder_reads_all_prompts_before_it_is_offloaded(
    sana: PaintedSana, tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n", encoding="utf-8")
    words = ["--prompt-file", "prompts.txt", "--negative-prompt", "blur", "--offload", "text"]
    assert main(["generate", *words]) == 0
    assert sana.read == [(["a cat", "a dog"], ["blur", "blur"])]
    assert [request.prompt for request in sana.requests] == ["a cat", "a dog"]
