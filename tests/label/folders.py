"""A folder of pictures as a source, a captioner that answers at once, and a process to kill."""

import io
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from opensana.datasets.record import Caption, Record, Reject
from opensana.errors import DataError
from opensana.label import stages
from opensana.label.captioner import Answers, CaptionSource, Pictures, Settings
from opensana.label.journal import writing
from opensana.label.opening import open_captioner
from opensana.label.stages import CaptionStage, PictureSet

AT_ONCE = 8
"""Requests that the process to kill has in flight."""


class FolderSource:
    """PNG files under their names without .png, with the captions of the .txt files beside them."""

    rejects: Sequence[Reject] = ()

    def __init__(self, folder: Path | str) -> None:
        self.files = sorted(Path(folder).glob("*.png"))

    def __len__(self) -> int:
        return len(self.files)

    def record(self, index: int) -> Record:
        path = self.files[index]
        text = path.with_suffix(".txt")
        captions = (Caption(text.read_text()),) if text.exists() else ()
        return Record(path.stem, 8, 8, captions)

    def picture(self, index: int) -> bytes:
        try:
            return self.files[index].read_bytes()
        except OSError as error:
            raise DataError(str(error)) from error


def decode(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        return image.convert("RGB")


def open_pictures(folder: Path | str) -> PictureSet:
    return PictureSet(FolderSource(folder), decode)


def draw(folder: Path, count: int, *, side: int = 8) -> Path:
    """Plain pictures, each of another colour."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        colour = (index % 256, index // 256, 7)
        Image.new("RGB", (side, side), colour).save(folder / f"{index:05}.png")
    return folder


class ColourCaptioner:
    """Names the first pixel, so that every answer tells which picture it is of."""

    def __init__(self, *, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.source = CaptionSource("colours", "1", "Which colour?", {})

    def __call__(self, pictures: Pictures) -> Answers:
        for key, image in pictures:
            time.sleep(self.seconds)
            yield key, colour_of(image)


def colour_of(image: Image.Image) -> str:
    return "the colour " + " ".join(map(str, image.getpixel((0, 0))))  # type: ignore[arg-type]


def open_stage(seconds: float = 0.0, pids: Path | None = None) -> CaptionStage:
    """The stage of ColourCaptioner; leaves a file named after its process in `pids`."""
    if pids is not None:
        (pids / str(os.getpid())).touch()
    return CaptionStage(ColourCaptioner(seconds=seconds))


def start(folder: Path, labels: Path, asked: str) -> subprocess.Popen[bytes]:
    """`main` below, in a process of its own."""
    command = [sys.executable, "-m", "tests.label.folders", str(folder), str(labels), asked]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def killed_many_times(folder: Path, labels: Path, asked: str, *, kills: int, total: int) -> None:
    """Kill `start` at random as its answers come in, then let it end."""
    captions, dice = labels / "captions.jsonl", random.Random(7)
    for kill in range(kills):
        process = start(folder, labels, asked)
        while count(captions) < (kill + 1) * total // (kills + 1) and process.poll() is None:
            time.sleep(0.001)
        time.sleep(dice.uniform(0, 0.01))
        process.kill()
        assert process.wait() == -signal.SIGKILL, "killed before its end"
    assert start(folder, labels, asked).wait() == 0


def count(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def expected(folder: Path) -> dict[str, str]:
    """Key -> caption, as ColourCaptioner writes it."""
    return {path.stem: colour_of(decode(path.read_bytes())) for path in folder.glob("*.png")}


def main(folder: str, to: str, asked: str) -> None:
    """`python -m tests.label.folders FOLDER LABELS SECONDS-OR-URL`: what the tests kill."""
    stage = (
        CaptionStage(open_captioner(asked, Settings(batch=AT_ONCE)))
        if asked.startswith("http")
        else open_stage(float(asked))
    )
    with writing(to) as labels:
        stages.run(stage, open_pictures(folder), labels, allowed=0)


if __name__ == "__main__":
    main(*sys.argv[1:])
