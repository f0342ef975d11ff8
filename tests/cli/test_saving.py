"""Pictures are encoded beside the drawing and written in their order, whole or not at all."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from opensana.cli import main
from opensana.cli.saving import MOST_WAITING, Saving
from opensana.drawing.picture import Picture
from opensana.files import writing
from opensana.request import Request
from tests.cli.painted import PaintedSana, files


class Drawn:
    """A picture by its number, whose PNG is made as soon as it may be."""

    def __init__(self, number: int, *, ready: bool = True) -> None:
        self.number, self.ready = number, threading.Event()
        if ready:
            self.ready.set()

    def png(self, *, metadata: bool) -> bytes:
        assert self.ready.wait(20)
        if self.number < 0:
            raise MemoryError("no room for its bytes")
        return bytes([self.number, metadata])


@pytest.fixture
def written() -> list[int]:
    return []


@pytest.fixture
def into(written: list[int]) -> Iterator[Saving]:
    def write(picture: Any, png: bytes) -> None:
        assert threading.current_thread() is threading.main_thread()
        assert png == bytes([picture.number, True])
        written.append(picture.number)

    yield Saving(write, metadata=True)
    assert not [t for t in threading.enumerate() if t.name.startswith("ThreadPool")]


def test_what_is_encoded_early_waits_for_those_before_it(into: Saving, written: list[int]) -> None:
    late: Any = Drawn(0, ready=False)
    others: Any = [Drawn(number) for number in (1, 2)]
    with into:
        for one in (late, *others):
            into.add(one)
        into.write_encoded()
        assert written == []
        late.ready.set()
        while not written:
            into.write_encoded()
        assert written == [0, 1, 2]
    assert written == [0, 1, 2]


def test_on_a_cpu_a_picture_is_written_before_the_next_is_drawn(written: list[int]) -> None:
    def write(picture: Any, png: bytes) -> None:
        assert png == bytes([picture.number, False])
        written.append(picture.number)

    pictures: Any = [Drawn(number) for number in range(3)]
    with Saving(write, metadata=False, at_once=True) as saving:
        for one in pictures:
            saving.add(one)
            assert written[-1] == one.number


def test_drawing_waits_where_too_many_do(into: Saving, written: list[int]) -> None:
    pictures: Any = [Drawn(number) for number in range(MOST_WAITING + 3)]
    with into:
        for one in pictures:
            into.add(one)
        assert written == [0, 1, 2]
    assert written == list(range(MOST_WAITING + 3))


@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError])
def test_all_that_was_drawn_is_written_at_the_end(
    into: Saving, written: list[int], failure: type[BaseException]
) -> None:
    def draw() -> None:
        late: Any = Drawn(0, ready=False)
        with into:
            into.add(late)
            late.ready.set()
            raise failure

    with pytest.raises(failure):
        draw()
    assert written == [0]


def test_a_picture_that_cannot_be_encoded_is_an_error_and_the_last(
    into: Saving, written: list[int]
) -> None:
    def draw() -> None:
        pictures: Any = [Drawn(0), Drawn(-1), Drawn(2)]
        with into:
            for one in pictures:
                into.add(one)

    with pytest.raises(MemoryError, match="no room"):
        draw()
    assert written == [0]


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(
    sana: PaintedSana,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain, left = writing.sync, [4]  # of a file and of its folder

    def full(path: Path) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        plain(path)

    monkeypatch.setattr(writing, "sync", full)
    assert main(["generate", "x", "-n", "9", "-o", "{index}.png"]) == 1
    captured = capsys.readouterr()
    assert captured.out == "0.png\n1.png\n"
    assert captured.err.splitlines()[-1].startswith("opensana: 2.png cannot be written: ")
    assert files(tmp_path) == ["0.png", "1.png"]


def test_pictures_of_before_are_written_between_steps(
    sana: PaintedSana,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    (tmp_path / "prompts.txt").write_text("a\nb\n")
    encoded, seen = threading.Event(), list[str]()
    png, paint = Picture.png, sana.paint

    def noted(self: Picture, *, metadata: bool = True) -> bytes:
        made = png(self, metadata=metadata)
        threading.Timer(0.05, encoded.set).start()
        return made

    class Patient(Saving):
        def __init__(self, write: Any, *, metadata: bool, at_once: bool) -> None:
            assert at_once  # on this CPU
            super().__init__(write, metadata=metadata)

        def write_encoded(self) -> None:
            if self._waiting:
                assert encoded.wait(20)
            super().write_encoded()

    def watched(request: Request, seed: int) -> Picture:
        seen.append(capsys.readouterr().out)
        return paint(request, seed)

    monkeypatch.setattr(Picture, "png", noted)
    monkeypatch.setattr("opensana.cli.generate.Saving", Patient)
    monkeypatch.setattr(sana, "paint", watched)
    assert main(["generate", "--prompt-file", "prompts.txt", "-o", "{index}.png"]) == 0
    assert seen == ["", "0.png\n"]
    assert capsys.readouterr().out == "1.png\n"
