import io
import json
import re
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops

from opensana.drawing.picture import Picture, parameters
from opensana.request import Request
from opensana.serve.api.infotext import parse
from tests.serve.gradient import serving

# What A1111's own reader of the last line is made of.
A1111 = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
ODD = 'a, b: "c" \\ d\ne 🍎 {}'
TEXTS = st.text(st.sampled_from(',:"\n\\{}<> aé🍎\u200d👩Steps'), min_size=1, max_size=40)


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


def a1111(text: str) -> dict[str, str]:
    """The settings of the last line as A1111 reads them."""
    found = A1111.findall(text.strip().split("\n")[-1])
    return {name: json.loads(value) if value[:1] == '"' else value for name, value in found}


@settings(max_examples=40, deadline=None)
@given(prompt=TEXTS.filter(str.strip), negative=TEXTS, model=TEXTS.filter(str.strip))
@example(prompt=ODD, negative=ODD, model=ODD)
def test_a_picture_tells_its_settings_whatever_they_are(
    prompt: str, negative: str, model: str
) -> None:
    request = Request(
        prompt, negative_prompt=negative, width=64, height=96, steps=20, guidance=4.5,
        seed=2**63 - 1, solver="euler",
    )  # fmt: skip
    data = Picture(Image.new("RGB", (64, 96)), request, model=model).png()
    with Image.open(io.BytesIO(data)) as image:
        chunks = dict(image.info)
    assert Request(**json.loads(chunks["opensana"])["request"]) == request
    settings = {
        "Steps": "20", "Sampler": "Euler", "CFG scale": "4.5", "Seed": str(2**63 - 1),
        "Size": "64x96", "Model": model,
    }  # fmt: skip
    assert a1111(chunks["parameters"]) == settings
    found = parse(chunks["parameters"])
    # A1111 takes each line without the blanks around it.
    lines = [
        "\n".join(line.strip() for line in text.split("\n")).strip("\n")
        for text in (prompt, negative)
    ]
    assert [found["Prompt"].strip("\n"), found["Negative prompt"].strip("\n")] == lines


def test_the_settings_of_a_picture_draw_it_again(tmp_path: Path) -> None:
    with serving(tmp_path) as server:

        def drawn(**body: object) -> Image.Image:
            job = server.wait(server.submit(**body)["id"])
            return Image.open(io.BytesIO(server.client.get(job["images"][0]["url"]).content))

        first = drawn(prompt=ODD, negative_prompt=ODD, steps=3, width=96)
        again = drawn(**json.loads(first.info["opensana"])["request"])
    assert not ImageChops.difference(first, again).getbbox()
    assert first.info == again.info
