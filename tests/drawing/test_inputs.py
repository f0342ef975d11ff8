"""The pictures that come with a request: one check, for the command and for Python alike."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from opensana.cli.app import parse
from opensana.cli.generate import Generate
from opensana.drawing.inputs import NO_INPUTS, Inputs, check_inputs, read_inputs
from opensana.errors import RequestError
from opensana.pipeline import Sana
from opensana.request import Request
from tests import tiny

IMAGE = Image.new("RGB", (64, 64), "red")
WRONG: list[tuple[dict[str, Any], dict[str, Any], bool, str]] = [
    ({"mask": IMAGE}, {}, False, "mask was given without a picture; add the image to change"),
    ({}, {"strength": 0.5}, False, "strength was given without a picture; add the image"),
    ({"image": IMAGE}, {"binned": True}, False, "drawn at its own size, not binned"),
    ({}, {}, True, "a ControlNet needs a picture to follow, got none; add a control image"),
    ({"control_scale": 0.5}, {}, False, "control_scale 0.5 was given without a control image"),
    ({"control_image": IMAGE}, {}, False, "without a ControlNet; name one to follow it"),
    ({"control_image": IMAGE, "control_scale": 11}, {}, True, "control_scale must be 0 to 10"),
]


@pytest.mark.parametrize(("inputs", "options", "controlnet", "message"), WRONG)
def test_what_does_not_go_together_is_refused(
    inputs: dict, options: dict, controlnet: bool, message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        check_inputs(Inputs(**inputs), Request("a fox", **options), controlnet=controlnet)


@pytest.fixture(scope="module")
def sana() -> Sana:
    return tiny.sana(instruction="none")


@pytest.mark.parametrize(
    ("inputs", "options", "message"), [case[:2] + case[3:] for case in WRONG if not case[2]]
)
def test_the_command_and_python_are_refused_in_the_same_words(
    sana: Sana, tmp_path: Path, inputs: dict, options: dict, message: str
) -> None:
    with pytest.raises(RequestError, match=message) as python:
        sana.draw("a fox", **inputs, **options)
    IMAGE.save(tmp_path / "image.png")
    words = ["generate", "a fox"]
    for name, value in (inputs | options).items():
        flag = f"--{name.replace('_', '-')}"
        given = tmp_path / "image.png" if value is IMAGE else value
        words += [flag] if value is True else [flag, str(given)]
    command = parse(words)
    assert isinstance(command, Generate)
    with pytest.raises(RequestError) as flags:
        command.inputs()
    assert str(flags.value) == str(python.value)


def test_the_command_has_all_of_them_as_flags() -> None:
    assert {field.name for field in fields(Inputs)} < {field.name for field in fields(Generate)}
    assert issubclass(Generate, Inputs)


def test_nothing_given_is_nothing_read() -> None:
    read = read_inputs(NO_INPUTS, Request("a fox"), controlnet=False, notice=pytest.fail)
    assert read == (None, None)


def test_pictures_are_read_once_their_rules_are_kept() -> None:
    inputs = Inputs(image=IMAGE, mask=IMAGE.convert("L").point(lambda _: 255))
    image, control = read_inputs(inputs, Request("a fox"), controlnet=False, notice=pytest.fail)
    assert image is not None and image.mask is not None and control is None
    missing = Inputs(image="missing.png", control_image="missing.png")
    with pytest.raises(RequestError, match="without a ControlNet"):
        read_inputs(missing, Request("a fox"), controlnet=False, notice=pytest.fail)


def test_a_body_may_hold_a_request_alone() -> None:
    """A file's name in a body would be read from the server's disk: it is no field of a request."""
    with pytest.raises(ValidationError, match="image"):
        TypeAdapter(Request).validate_python({"prompt": "a fox", "image": "/etc/passwd"})
