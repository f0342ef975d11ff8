"""PNG metadata: what other tools read, and the request that comes back."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from opensana.drawing.picture import Picture, parameters, read_note, read_request
from opensana.errors import OpensanaError, RequestError
from opensana.request import Request

AWKWARD = 'a "cat", two: 50%\nNegative prompt: no\\ 🍎🏳️‍🌈 é\tend'


def picture(request: Request, model: str = "tiny") -> Picture:
    return Picture(Image.new("RGB", (8, 8), "red"), request, model=model)


def full(prompt: str, **fields) -> Request:
    return Request(
        prompt, **{"width": 64, "height": 96, "seed": 12, "steps": 20, "guidance": 4.5} | fields
    )


def test_a_request_comes_back_exactly(tmp_path: Path) -> None:
    request = full(AWKWARD, negative_prompt='bad, "worse": x\n🙈', guidance=2, solver="euler")
    path = picture(request).save(tmp_path / "one.png")
    assert read_request(path) == request


@settings(max_examples=50, deadline=None)
@given(st.text(min_size=1).filter(lambda text: text.strip()), st.text())
def test_any_prompt_comes_back(prompt: str, negative: str) -> None:
    try:
        request = full(prompt, negative_prompt=negative)
    except RequestError:  # half a surrogate pair
        return
    import io

    file = io.BytesIO(picture(request).png())
    with Image.open(file) as image:
        note = json.loads(getattr(image, "text")["opensana"])  # noqa: B009
    assert Request(**note["request"]) == request


def test_the_parameters_text_is_what_other_tools_read() -> None:
    request = full("a cat", negative_prompt="blurry", solver="flow_dpm")
    assert parameters(request, "emoji-256") == (
        "a cat\nNegative prompt: blurry\nSteps: 20, Sampler: DPM++ 2M, CFG scale: 4.5, "
        "Seed: 12, Size: 64x96, Model: emoji-256"
    )
    assert "Negative" not in parameters(full("a cat"))
    assert "Sampler: LCM" in parameters(full("a cat", solver="scm"))


# The shape of the A1111 reader: key, colon, JSON string or text without a comma.
SETTING = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


def test_awkward_values_are_quoted() -> None:
    model = 'C:\\models\\a, "b"'
    last = parameters(full("a cat"), model).splitlines()[-1]
    found = dict(SETTING.findall(last))
    assert json.loads(found["Model"]) == model
    assert found["Seed"] == "12"


def test_metadata_can_be_left_out(tmp_path: Path) -> None:
    path = picture(full("secret")).save(tmp_path / "one.png", metadata=False)
    assert b"secret" not in path.read_bytes()
    with pytest.raises(RequestError, match="no opensana settings"):
        read_request(path)


def test_saving_leaves_nothing_half_done(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="png"):
        picture(full("a cat")).save(tmp_path / "one.jpg")
    with pytest.raises(OpensanaError, match="cannot be written"):
        picture(full("a cat")).save(tmp_path / "nowhere" / "one.png")
    picture(full("a cat")).save(tmp_path / "one.png")
    picture(full("a dog")).save(tmp_path / "one.png")
    assert [path.name for path in tmp_path.iterdir()] == ["one.png"]
    assert read_request(tmp_path / "one.png").prompt == "a dog"


@pytest.mark.parametrize(
    "content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n", b"\x89PNG\r\n\x1a\n" + b"\xff" * 64]
)
def test_a_broken_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "one.png").write_bytes(content)
    with pytest.raises(RequestError, match="readable PNG"):
        read_request(tmp_path / "one.png")


@pytest.mark.parametrize(
    "note",
    ["[]", "{", '{"format": 9, "request": {}}', '{"format": 1, "request": {"promt": "a"}}'],
)
def test_broken_settings_are_refused(tmp_path: Path, note: str) -> None:
    from PIL import PngImagePlugin

    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("opensana", note)
    Image.new("RGB", (4, 4)).save(tmp_path / "one.png", pnginfo=chunks)
    with pytest.raises(OpensanaError):
        read_request(tmp_path / "one.png")


def test_a_model_whose_path_is_no_text_is_recorded(tmp_path: Path) -> None:
    picture = Picture(Image.new("RGB", (8, 8)), Request("x", seed=1), model="caf\udce9/model")
    path = picture.save(tmp_path / "a.png")
    assert read_note(path)["model"] == "caf\udce9/model"
    with Image.open(path) as image:
        assert "Model: caf\\udce9/model" in image.text["parameters"]  # pyright: ignore[reportAttributeAccessIssue]
