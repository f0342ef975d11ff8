"""What a user may ask for."""

import dataclasses
import json

import pytest
import tyro
from pydantic import TypeAdapter, ValidationError

from opensana.errors import OpensanaError, RequestError
from opensana.request import LARGEST_SEED, Request, as_request, seeds_from


def test_the_defaults_need_only_a_prompt() -> None:
    request = Request("a red fox")
    assert (request.steps, request.guidance, request.solver) == (None, None, None)
    assert request.width is None
    assert request.seed is None


@pytest.mark.parametrize(
    "fields",
    [
        {"width": 32, "height": 8192},
        {"steps": 1},
        {"steps": 1000},
        {"guidance": 0},
        {"guidance": 100.0},
        {"seed": 0},
        {"seed": LARGEST_SEED},
        {"images": 64},
        {"solver": "euler"},
        {"strength": 0.001},
        {"strength": 1},
        {"negative_prompt": "blur, ☔"},
    ],
)
def test_the_limits_are_allowed(fields: dict) -> None:
    Request("a fox", **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": " \n\t"}, "prompt is empty"),
        ({"prompt": 3}, "prompt must be text, got 3"),
        ({"prompt": "a\ud800"}, "prompt is not valid Unicode at character 2"),
        ({"negative_prompt": None}, "negative_prompt must be text"),
        ({"width": 500}, "width must be a multiple of 32, got 500; try 480 or 512"),
        ({"height": 31}, "height must be 32 to 8192, got 31; try 32"),
        ({"height": 8224}, "try 8192"),
        ({"width": 512.0}, "width must be a whole number, got 512.0"),
        ({"steps": 0}, "steps must be 1 to 1000, got 0; try 1"),
        ({"steps": 1001}, "try 1000"),
        ({"steps": True}, "steps must be a whole number, got True"),
        ({"steps": "20"}, "steps must be a whole number, got '20'"),
        ({"guidance": -0.1}, "guidance must be 0 to 100, got -0.1; try 4.5"),
        ({"guidance": float("nan")}, "got nan"),
        ({"guidance": float("inf")}, "got inf"),
        ({"guidance": "much"}, "guidance must be a number, got 'much'"),
        ({"strength": 0}, "strength must be above 0 and at most 1, got 0; try 0.6"),
        ({"strength": 1.01}, "strength must be above 0 and at most 1, got 1.01"),
        ({"strength": float("nan")}, "got nan"),
        ({"strength": True}, "strength must be a number, got True"),
        ({"seed": -1}, "seed must be 0 to 9223372036854775807, got -1; try 0 or leave it out"),
        ({"seed": LARGEST_SEED + 1}, "seed must be"),
        ({"images": 0}, "images must be 1 to 64, got 0"),
        ({"images": 65}, "try 64"),
        ({"solver": "eular"}, "or euler or scm, got 'eular' (did you mean 'euler'?)"),
        ({"solver": 3}, "got 3"),
    ],
)
def test_a_wrong_field_says_what_to_try(fields: dict, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        Request(**{"prompt": "a fox", **fields})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, OpensanaError)


def test_a_request_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Request("a fox").steps = 3  # type: ignore[misc]


def test_seeds_follow_from_the_first() -> None:
    assert seeds_from(7, 3) == (7, 8, 9)
    assert seeds_from(LARGEST_SEED, 2) == (LARGEST_SEED, 0)


def test_fields_may_be_added_to_a_prompt_or_a_request() -> None:
    request = Request("a fox", steps=3)
    assert as_request("a fox", {"steps": 3}) == request
    assert as_request(request, {}) is request
    assert as_request(request, {"steps": 4}) == Request("a fox", steps=4)


def test_the_command_line_reads_it(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--prompt", "a fox", "--width", "512", "--solver", "euler"]
    assert tyro.cli(Request, args=arguments) == Request("a fox", width=512, solver="euler")
    with pytest.raises(SystemExit):
        tyro.cli(Request, args=["--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "What the picture should show." in shown
    assert "pydantic" not in shown


def test_an_http_body_is_held_to_the_same_rules() -> None:
    adapter = TypeAdapter(Request)
    body = json.dumps({"prompt": "a fox", "steps": 4})
    assert adapter.validate_json(body) == Request("a fox", steps=4)
    with pytest.raises(ValidationError, match="stepz"):
        adapter.validate_python({"prompt": "a fox", "stepz": 4})
    with pytest.raises(ValidationError, match="try 480 or 512"):
        adapter.validate_python({"prompt": "a fox", "width": 500})
