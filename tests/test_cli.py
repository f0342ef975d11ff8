"""The command line with a stand-in model: what it asks for, prints, refuses and leaves behind."""

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import opensana
from opensana.cli import app, main
from opensana.cli.app import COMMANDS
from opensana.cli.command import table
from opensana.cli.generate import Generate
from opensana.cli.output import PictureFiles
from opensana.drawing.init_image import read_original
from opensana.drawing.picture import Picture
from opensana.errors import OpensanaError, RequestError, WeightsError
from opensana.evaluate import Counts
from opensana.request import Request

ROOT = Path(__file__).resolve().parent.parent


class PaintedSana:
    """Paints one colour a seed instead of drawing."""

    loads: list[dict[str, Any]]
    requests: list[Request]

    def __init__(self) -> None:
        self.loads, self.requests = [], []
        self.facts: dict[str, str] = {}
        self.failure: BaseException | None = None
        self.painted_before_failure = 0

    def load(self, model: str, **options: Any) -> "PaintedSana":
        self.loads.append({"model": model} | options)
        return self

    def draw(
        self,
        request: Request,
        *,
        on_step: Callable[[int, int, Any], None],
        notice: Callable[[str], None],
        image: Image.Image | None,
        mask: Image.Image | None,
        control_image: Image.Image | None = None,
        control_scale: float = 1.0,
    ) -> Iterator[Picture]:
        self.requests.append(request)
        original = read_original(image, mask)
        self.facts = original.facts if original else {}
        if len(request.prompt) > 100:
            notice("the prompt is too long")
        steps = 20 if request.steps is None else request.steps
        for step in range(steps):
            on_step(step, steps, None)
        whole = replace(
            request.seeded(),
            width=request.width or 64,
            height=request.height or 64,
            steps=steps,
            guidance=4.5 if request.guidance is None else request.guidance,
        )
        for number, seed in enumerate(whole.seeds):
            if self.failure is not None and number == self.painted_before_failure:
                raise self.failure
            yield self.paint(whole, seed)

    def paint(self, request: Request, seed: int) -> Picture:
        image = Image.new("RGB", (request.width or 64, request.height or 64), (seed % 256, 0, 0))
        own = replace(request, seed=seed, images=1)
        return Picture(image, own, model="painted", facts=self.facts)


@pytest.fixture
def sana(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> PaintedSana:
    stand_in = PaintedSana()
    monkeypatch.setitem(vars(opensana), "Sana", stand_in)
    monkeypatch.chdir(tmp_path)
    return stand_in


@pytest.fixture
def never_loaded(sana: PaintedSana) -> Iterator[PaintedSana]:
    yield sana
    assert not sana.loads, "the model was loaded before the request was checked"


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The message of a command line that asks for something wrong."""
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    assert "Traceback" not in captured.err
    return captured.err


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ------------------------------------------------------------------ generate


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
    line += " --revision r --variant fp16 --memory 2GiB --compile --kernels --binned"
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
        "lora": None, "lora_scale": 1.0,
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


def test_each_picture_is_saved_and_told_before_the_next_is_drawn(
    sana: PaintedSana,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    seen: list[tuple[list[str], str]] = []
    paint = sana.paint

    def watched(request: Request, seed: int) -> Picture:
        seen.append((files(tmp_path), capsys.readouterr().out))
        return paint(request, seed)

    monkeypatch.setattr(sana, "paint", watched)
    assert main(["generate", "x", "-n", "3", "-o", "{index}.png"]) == 0
    assert seen == [([], ""), (["0.png"], "0.png\n"), (["0.png", "1.png"], "1.png\n")]


# ------------------------------------------------------------------ pictures to start from


@pytest.fixture
def scans(sana: PaintedSana, tmp_path: Path) -> PaintedSana:
    """Beside the model: cat.png, a mask.png for it, and dog.png."""
    for name, colour in (("cat", "red"), ("mask", "white"), ("dog", "blue")):
        Image.new("RGB", (64, 32), colour).save(tmp_path / f"{name}.png")
    return sana


EDIT = ["generate", "x", "--image", "cat.png", "--mask", "mask.png", "--seed", "1", "-o", "a.png"]


def test_a_picture_to_start_from_is_not_binned(
    scans: PaintedSana, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "leave binned out" in refused(capsys, *EDIT, "--binned")
    assert not scans.loads


def test_a_binned_picture_is_drawn_again_as_one(sana: PaintedSana) -> None:
    assert main(["generate", "x", "--binned", "--width", "333", "-o", "a.png"]) == 0
    assert main(["generate", "--from-png", "a.png", "--steps", "3", "-o", "b.png"]) == 0
    assert (sana.requests[-1].binned, sana.requests[-1].width) == (True, 333)


def test_image_and_mask_reach_the_model(scans: PaintedSana) -> None:
    assert main([*EDIT, "--strength", "0.4", "-n", "2"]) == 0
    assert scans.facts.keys() == {"image_sha256", "mask_sha256"}
    assert scans.requests == [Request("x", seed=1, images=2, strength=0.4)]


def test_an_edit_is_drawn_again_from_the_same_picture(scans: PaintedSana, tmp_path: Path) -> None:
    assert main([*EDIT, "--strength", "0.4"]) == 0
    again = "generate --from-png a.png --image cat.png --mask mask.png -o again.png"
    assert main(again.split()) == 0
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "a.png").read_bytes()
    assert main([*again.split(), "--strength", "0.9"]) == 0
    assert scans.requests[-1].strength == 0.9


def test_a_plain_picture_may_be_redrawn_with_an_image(scans: PaintedSana) -> None:
    assert main(["generate", "x", "-o", "plain.png"]) == 0
    assert main(["generate", "--from-png", "plain.png", "--image", "cat.png"]) == 0
    assert scans.facts.keys() == {"image_sha256"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("", "a.png was drawn with --image; give it again"),
        ("--image cat.png", "a.png was drawn with --mask; give it again"),
        (
            "--image dog.png --mask mask.png",
            "dog.png is not the --image that a.png was drawn with",
        ),
        (
            "--image cat.png --mask other.png",
            "other.png is not the --mask that a.png was drawn with",
        ),
    ],
)
def test_an_edit_is_not_drawn_again_from_another_picture(
    scans: PaintedSana, capsys: pytest.CaptureFixture[str], flags: str, message: str
) -> None:
    half = Image.new("L", (64, 32), 0)
    half.paste(255, (0, 0, 32, 32))
    half.save("other.png")
    assert main(EDIT) == 0
    capsys.readouterr()
    scans.loads.clear()
    assert message in refused(capsys, "generate", "--from-png", "a.png", *flags.split())
    assert not scans.loads


# ------------------------------------------------------------------ names


@pytest.mark.parametrize("length", [9, 233, 234, 250, 255])
@pytest.mark.parametrize("letter", ["a", "\u732b"])
def test_every_name_that_the_system_takes_is_written(
    sana: PaintedSana, tmp_path: Path, length: int, letter: str
) -> None:
    size = len(letter.encode())
    name = letter * ((length - 4) // size) + "b" * ((length - 4) % size) + ".png"
    assert len(os.fsencode(name)) == length
    assert main(["generate", "x", "-o", name]) == 0
    assert files(tmp_path) == [name]


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("a" * 252 + ".png", []),
        ("\u732b" * 84 + ".png", []),
        ("a" * 251 + ".png", ["-n", "2"]),
        ("a" * 250 + ".png", ["-n", "11", "--overwrite"]),
        ("a" * 250 + "{index}.png", ["-n", "11"]),
        ("a" * 242 + "{seed}.png", []),
        ("a" * 246 + "{seed}.png", ["--seed", "123456"]),
        ("{seed:0300d}.png", []),
        ("{seed:c}.png", []),
    ],
)
def test_a_name_that_cannot_be_written_is_refused_before_drawing(
    never_loaded: PaintedSana,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    name: str,
    flags: list[str],
) -> None:
    message = refused(capsys, "generate", "x", "-o", name, *flags)
    assert "no picture can be written as" in message
    assert message.count("\n") == 1
    assert files(tmp_path) == []


def test_the_number_behind_a_name_that_is_taken_counts(
    sana: PaintedSana, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    name = "a" * 251 + ".png"
    for _ in range(2):
        assert main(["generate", "x", "-o", name, "--overwrite"]) == 0
    sana.loads.clear()
    capsys.readouterr()
    assert "257 bytes" in refused(capsys, "generate", "x", "-o", name)
    assert not sana.loads
    assert files(tmp_path) == [name]


def test_a_path_that_is_too_long_is_refused_before_drawing(
    never_loaded: PaintedSana, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    longest = os.pathconf(tmp_path, "PC_PATH_MAX") - 1
    part = "p" * 199 + "/"
    for rest in (5, 10, 300):  # too long: the name under which it is written first, its own, all
        folder = part * 30 if rest == 300 else part * ((longest - rest) // 200)
        folder += "f" * (longest - rest - len(folder) - 1) + "/" if rest < 300 else ""
        message = refused(capsys, "generate", "x", "-o", folder + "abcd.png")
        assert "File name too long" in message


def test_a_folder_of_the_name_is_not_overwritten(sana: PaintedSana, tmp_path: Path) -> None:
    (tmp_path / "out_3.png").mkdir()
    assert main(["generate", "x", "--seed", "3", "--overwrite"]) == 0
    assert files(tmp_path) == ["out_3-1.png", "out_3.png"]


def test_many_pictures_of_one_name_are_named_fast(tmp_path: Path) -> None:
    names = PictureFiles(str(tmp_path / "a.png"), overwrite=True)
    names.check([Request("x", images=64)] * 300)
    assert [names.path(seed=None, index=0).name for _ in range(2)] == ["a.png", "a-1.png"]


@pytest.mark.parametrize("grid", ["a" * 256, "folder", "/proc/self/g.png"])
@pytest.mark.parametrize("command", ["evaluate", "reconstruct"])
def test_a_grid_that_cannot_be_written_is_refused_before_the_work(
    never_loaded: PaintedSana,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    command: str,
    grid: str,
) -> None:
    (tmp_path / "folder").mkdir()
    refused(capsys, command, "emoji-256", *["folder"] * (command != "evaluate"), "--grid", grid)


# ------------------------------------------------------------------ what a console can show

STAND_IN = """
import opensana
from PIL import Image
from opensana.cli import program
from opensana.drawing.picture import Picture
class Painted:
    def load(*_, **__): return Painted()
    def draw(self, request, notice, **_):
        notice(request.prompt)
        for seed in request.seeds:
            yield Picture(Image.new('RGB', (8, 8)), request)
opensana.Sana = Painted()
program()
"""


def painted_by_a_process(folder: Path, command: str, **environment: str) -> bytes:
    """What a shell's command prints that runs the stand-in, which must end well."""
    (folder / "painted.py").write_text(STAND_IN)
    known = {name: value for name, value in os.environ.items() if not name.startswith("LC_")}
    done = subprocess.run(
        command.replace("opensana", f"{sys.executable} painted.py"),
        shell=True,
        cwd=folder,
        env=known | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("environment", "shown"),
    [
        ({"PYTHONIOENCODING": "cp1252"}, rb"\u732b"),
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, "\u732b".encode()),
    ],
)
def test_three_prompts_are_three_pictures_on_any_console(
    tmp_path: Path, environment: dict[str, str], shown: bytes
) -> None:
    (tmp_path / "p.txt").write_text("\u72d7\na \U0001f34e\n\u00e9t\u00e9\n", "utf-8")
    line = "opensana generate --prompt-file p.txt --seed 1 -o '\u732b{index}.png'"
    told = painted_by_a_process(tmp_path, line, **environment)
    assert told.splitlines() == [b"%s%d.png" % (shown, index) for index in range(3)]
    assert set(files(tmp_path)) > {f"\u732b{index}.png" for index in range(3)}


def test_an_output_that_nobody_reads_ends_no_drawing(tmp_path: Path) -> None:
    line = "opensana generate x -n 2 --seed 1 -o {index}.png 2>&-"
    assert painted_by_a_process(tmp_path, line) == b"0.png\n1.png\n"
    painted_by_a_process(tmp_path, f"{line} --overwrite >&-")
    assert files(tmp_path) == ["0.png", "1.png", "painted.py"]


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "cp932", "utf-8"])
def test_results_survive_every_encoding(
    sana: PaintedSana, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, encoding: str
) -> None:
    (tmp_path / "p.txt").write_text("\u72d7\na \U0001f34e\n\u00e9t\u00e9\n", "utf-8")
    # Letters of many scripts, and a byte that is no text, as Python hands it over.
    name = "\u732b\u00e9\u0430\U0001f34e\udce9-{index}.png"
    line = ["generate", "--prompt-file", "p.txt", "--seed", "1", "-o", name, "--overwrite"]
    for form in ([], ["--json"]):
        console = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, "stdout", console)
        assert main([*line, *form]) == 0
        console.flush()
        told = console.buffer.getvalue().splitlines()  # pyright: ignore[reportAttributeAccessIssue]
        paths = [name.format(index=index) for index in range(3)]
        if form:
            assert [json.loads(line)["path"] for line in told] == paths
        elif encoding == "utf-8":
            assert told == [os.fsencode(path) for path in paths]
        else:
            assert [line[-6:] for line in told] == [b"-%d.png" % index for index in range(3)]
    assert len(files(tmp_path)) == 4


def test_a_full_disk_behind_stderr_ends_no_drawing(
    sana: PaintedSana, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Full(io.StringIO):
        def flush(self) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stderr", Full())
    assert main(["generate", "word " * 50, "-o", "a.png"]) == 0
    assert files(tmp_path) == ["a.png"]


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


def test_an_unknown_command_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "genrate", "x")
    assert all(name in message for name in COMMANDS)


# ------------------------------------------------------------------ failures


def test_errors_are_one_line(sana: PaintedSana, capsys: pytest.CaptureFixture[str]) -> None:
    sana.failure = WeightsError("file a\nis broken")
    assert main(["generate", "x"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "opensana: file a is broken"


def test_unforeseen_errors_are_one_line_too(
    sana: PaintedSana, capsys: pytest.CaptureFixture[str]
) -> None:
    sana.failure = RuntimeError("out of memory")
    assert main(["generate", "x"]) == 1
    error = capsys.readouterr().err.splitlines()
    assert error[-1] == "opensana: RuntimeError: out of memory; add --debug to see where"
    assert len(error) == 2


def test_debug_shows_the_traceback(sana: PaintedSana, capsys: pytest.CaptureFixture[str]) -> None:
    sana.failure = OpensanaError("why")
    assert main(["generate", "x", "--debug"]) == 1
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert error.splitlines()[-1] == "opensana: why"


def test_interrupted_leaves_nothing_behind(
    sana: PaintedSana, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    sana.failure = KeyboardInterrupt()
    assert main(["generate", "x"]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "opensana: interrupted"
    assert files(tmp_path) == []


def test_ctrl_c_in_a_real_process(tmp_path: Path) -> None:
    code = (
        "import signal, sys, time, opensana\n"
        "from opensana.cli import main\n"
        # A test run in the background of a shell inherits Ctrl-C as ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "class Slow:\n"
        "    def load(*_, **__):\n"
        "        print('loaded', flush=True); time.sleep(60)\n"
        "opensana.Sana = Slow()\n"
        f"sys.exit(main(['generate', 'x', '-o', {str(tmp_path / 'a.png')!r}]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"loaded\n"
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=10)
    assert process.returncode == 130
    assert b"Traceback" not in error
    assert files(tmp_path) == []


def test_ctrl_c_between_pictures_keeps_those_that_are_done(tmp_path: Path) -> None:
    code = (
        "import signal, sys, time, opensana\n"
        "from PIL import Image\n"
        "from opensana.cli import main\n"
        "from opensana.drawing.picture import Picture\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "class Slow:\n"
        "    def load(*_, **__): return Slow()\n"
        "    def draw(self, request, **_):\n"
        "        for seed in (1, 2):\n"
        "            yield Picture(Image.new('RGB', (8, 8)), request)\n"
        "        time.sleep(60)\n"
        "opensana.Sana = Slow()\n"
        "sys.exit(main(['generate', 'x', '-n', '64', '-o', '{index}.png']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == [b"0.png\n", b"1.png\n"]
    process.send_signal(signal.SIGINT)
    rest, error = process.communicate(timeout=10)
    assert (process.returncode, rest) == (130, b"")
    assert error.splitlines()[-1:] == [b"opensana: interrupted"]
    assert files(tmp_path) == ["0.png", "1.png"]


# ------------------------------------------------------------------ the other commands


def test_info(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    told = {"model": "m", "parameters": 1234567, "parts": {"vae": {"dtype": "F16"}}}
    monkeypatch.setattr(
        "opensana.models.describe.describe", lambda model, **_: told | {"model": model}
    )
    assert main(["info", "some"]) == 0
    assert "1,234,567" in capsys.readouterr().out
    assert main(["info", "some", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == told | {"model": "some"}


def test_info_of_a_model_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "emoji-25"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "no model 'emoji-25'" in captured.err


def test_train(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr("opensana.train.run", lambda *arguments: calls.append(arguments))
    assert main(["train", "r.toml", "--set", "a.b=1", "--set", "c=x"]) == 0
    assert calls == [(Path("r.toml"), ("a.b=1", "c=x"))]


def test_train_without_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert "RECIPE" in refused(capsys, "train")


def test_a_missing_recipe_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "missing.toml"]) == 2
    assert "missing.toml" in capsys.readouterr().err


def test_evaluate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    calls: list[Any] = []

    def evaluate(*arguments: Any, **options: Any) -> dict[str, float]:
        calls.append((arguments, options))
        return {"psnr": 27.5}

    monkeypatch.setattr("opensana.evaluate.evaluate_emoji", evaluate, raising=False)
    asked = ["--data", "d", "--labels", "3", "--grid", "g.png", "--steps", "4", "--size", "512"]
    assert main(["evaluate", "m", *asked]) == 0
    options = {"counts": Counts(labels=3), "grid": Path("g.png"), "steps": 4, "size": 512}
    assert calls == [(("m", Path("d")), options)]
    assert capsys.readouterr().out == "psnr  27.5\n"
    assert main(["evaluate", "m", "--pairs", "-1"]) == 2
    assert "pairs must be 0 or more, got -1" in capsys.readouterr().err


def test_convert(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[Any] = []

    def convert(source: str, destination: Path, **options: Any) -> Path:
        calls.append((source, destination, options))
        return destination

    monkeypatch.setattr("opensana.models.convert.convert", convert)
    assert main(["convert", "a.pth", "out", "--preset", "p", "--shift", "4", "--ema"]) == 0
    assert calls == [
        (
            "a.pth",
            Path("out"),
            {"preset": "p", "base": None, "shift": 4.0, "ema": True, "heads": None},
        )
    ]
    assert capsys.readouterr().out == "out\n"


def test_tables_align_and_nest() -> None:
    assert table({"a": 1, "long": {"b": 0.123456}, "none": None}) == [
        "a     1",
        "long",
        "  b  0.1235",
        "none",
    ]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"opensana {opensana.__version__}\n"


def test_paths_never_repeat_within_a_run(tmp_path: Path) -> None:
    names = PictureFiles(str(tmp_path / "a.png"), overwrite=True)
    assert [names.path(seed=1, index=i).name for i in range(3)] == ["a.png", "a-1.png", "a-2.png"]


def test_a_lone_brace_is_explained(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="for braces"):
        PictureFiles(str(tmp_path / "a}.png"), overwrite=False)


def test_the_page_on_the_command_line_is_fresh() -> None:
    page = subprocess.run(
        [sys.executable, "-m", "docs.cli"],
        cwd=ROOT,
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        check=True,
    ).stdout.decode("utf-8")
    assert page == (ROOT / "docs" / "cli.md").read_text(encoding="utf-8"), "run `make docs`"


def test_a_reader_that_leaves_early_is_no_error() -> None:
    code = (
        "import sys\n"
        "from opensana.cli import main\n"
        "from opensana.cli import info\n"
        "import types\n"
        "describing = types.ModuleType('opensana.models.describe')\n"
        "describing.describe = lambda *_, **__: {str(i): 'x' * 1000 for i in range(1000)}\n"
        "sys.modules['opensana.models.describe'] = describing\n"
        "sys.exit(main(['info', 'm']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=10) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a full device")
def test_a_full_disk_behind_stdout_is_one_line() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "opensana.cli", "--version"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "No space left on device" in done.stderr


def test_the_program_ends_by_itself_where_threads_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "main", lambda: 3)
    ended: list[int] = []
    monkeypatch.setattr(app.os, "_exit", ended.append)
    monkeypatch.setattr(app.atexit, "_run_exitfuncs", lambda: None)
    monkeypatch.setattr(app.threading, "active_count", lambda: 1)
    app.program()
    assert ended == [3]
    monkeypatch.setattr(app.threading, "active_count", lambda: 2)
    with pytest.raises(SystemExit) as caught:
        app.program()
    assert (caught.value.code, ended) == (3, [3])
