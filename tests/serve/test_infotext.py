import pytest

from opensana.drawing.picture import parameters
from opensana.request import Request
from opensana.serve.infotext import parse


def test_what_is_written_is_read_back() -> None:
    request = Request(
        "a cat, a dog\nin two lines: yes",
        negative_prompt="blur,\nnoise",
        width=64,
        height=96,
        steps=20,
        guidance=4.5,
        seed=7,
        solver="flow_dpm",
    )
    found = parse(parameters(request, model='a, "b": c'))
    assert found == {
        "Prompt": request.prompt,
        "Negative prompt": request.negative_prompt,
        "Steps": "20",
        "Sampler": "DPM++ 2M",
        "CFG scale": "4.5",
        "Seed": "7",
        "Size-1": "64",
        "Size-2": "96",
        "Model": 'a, "b": c',
    }


def test_another_program_s_text() -> None:
    text = (
        "a girl, (beret:1.2)\nNegative prompt: ugly\n"
        'Steps: 20, Sampler: Euler a, Size: 512x640, Lora hashes: "ink: ab12, film: cd34"'
    )
    found = parse(text)
    assert found["Prompt"] == "a girl, (beret:1.2)" and found["Size-2"] == "640"
    assert found["Lora hashes"] == "ink: ab12, film: cd34"


@pytest.mark.parametrize("text", ["", "a prompt: with, one: colon", '\n"', 'a: "b, c: d'])
def test_a_text_that_is_no_such_settings_is_a_prompt(text: str) -> None:
    assert parse(text) == {"Prompt": text.strip(), "Negative prompt": ""}
