"""A folder of pictures as a source, a captioner that answers at once, and a process to kill."""

import io
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from opensana.data.record import Caption, Record, Reject
from opensana.errors import DataError
from opensana.label import stages
from opensana.label.captioners import Answers, Maker, Pictures
from opensana.label.journal import writing
from opensana.label.stages import CaptionStage, PictureSet


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
        self.maker = Maker("colours", "1", "Which colour?", {})

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


def expected(folder: Path) -> dict[str, str]:
    """Key -> caption, as ColourCaptioner writes it."""
    return {path.stem: colour_of(decode(path.read_bytes())) for path in folder.glob("*.png")}


def main(folder: str, to: str, seconds: str) -> None:
    """`python -m tests.label.folders FOLDER LABELS SECONDS`: what the tests kill."""
    with writing(to) as labels:
        stages.run(open_stage(float(seconds)), open_pictures(folder), labels, allowed=0)


if __name__ == "__main__":
    main(*sys.argv[1:])
