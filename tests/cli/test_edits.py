"""`opensana generate --image --mask`, and drawing an edit again from its PNG.

Also tests `drawing/recorded.py`.
"""

from pathlib import Path

import pytest
from PIL import Image

from opensana.cli import main
from opensana.request import Request
from tests.cli.painted import PaintedSana, refused


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
    assert scans.provenance.keys() == {"image_sha256", "mask_sha256"}
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
    assert scans.provenance.keys() == {"image_sha256"}


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
