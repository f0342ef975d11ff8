"""OpenAI's API, asked by its own Python client.

Also tests `serve/api/openai_body.py`, `serve/api/openai_answer.py`, `serve/api/formats.py`,
`serve/api/fields.py`.
"""

import asyncio
import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import openai
import pytest
from openai.types import ImageGenCompletedEvent, ImageGenPartialImageEvent, ImagesResponse
from PIL import Image, ImageChops

from opensana.serve.api.formats import encoded, settings_of
from opensana.serve.api.openai_answer import Partials
from opensana.serve.api.openai_body import CLIENT_NAMES, Generation
from opensana.serve.gate.keys import LOCAL, Keys
from tests.serve.gradient import RANDOM_SEED, Gradient, Server, gradient, serving


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path) as found:
        yield found


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return client_of(server)


def client_of(server: Server, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)


def opened(text: str | None) -> Image.Image:
    assert text is not None
    return Image.open(io.BytesIO(base64.b64decode(text)))


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def holed(side: int = 64) -> Image.Image:
    """Opaque, with a transparent left half: OpenAI's mask."""
    mask = Image.new("RGBA", (side, side), "black")
    mask.paste((0, 0, 0, 0), (0, 0, side // 2, side))
    return mask


SQUARE = ("square.png", png(Image.new("RGB", (64, 64), "red")))


def test_pictures_with_their_seeds(client: openai.OpenAI) -> None:
    more = {"seed": 5, "num_inference_steps": 3, "guidance_scale": 2, "negative_prompt": "blur"}
    answer = client.images.generate(prompt="an apple", n=2, size="128x64", extra_body=more)
    ImagesResponse.model_validate(answer.model_dump(), strict=True)
    assert answer.data is not None and answer.size is None, "clients may know few sizes"
    for item, seed in zip(answer.data, (5, 6), strict=True):
        extra = item.model_dump()
        assert (extra["seed"], extra["width"], extra["height"]) == (seed, 128, 64)
        drawn = opened(item.b64_json)
        assert not ImageChops.difference(drawn, gradient(128, 64, seed, 3)).getbbox()
        assert drawn.info["parameters"].startswith("an apple\nNegative prompt: blur\nSteps: 3")


def test_a_seed_that_was_left_out_is_told(client: openai.OpenAI) -> None:
    answer = client.images.generate(prompt="an apple", size="auto")
    assert answer.data is not None
    assert answer.data[0].model_dump()["seed"] == RANDOM_SEED


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_formats_as_text_and_as_url(server: Server, client: openai.OpenAI, format: Any) -> None:
    asked: dict[str, Any] = {"prompt": "äpfel", "output_format": format, "output_compression": 80}
    one = client.images.generate(**asked, response_format="b64_json").data
    other = client.images.generate(**asked, response_format="url").data
    assert one and other and other[0].url and other[0].b64_json is None
    fetched = server.client.get(other[0].url)
    assert fetched.headers["content-type"] == f"image/{format}"
    assert fetched.content == base64.b64decode(one[0].b64_json or "")
    image = opened(one[0].b64_json)
    assert image.format == format.upper() and image.size == (64, 64)
    assert settings_of(image).startswith("äpfel\nSteps: 4")


def test_webp_at_100_is_lossless() -> None:
    drawn = gradient(64, 64, 1, 1)
    webp = Image.open(io.BytesIO(encoded(png(drawn), "webp")))
    assert not ImageChops.difference(drawn, webp.convert("RGB")).getbbox()


def test_the_content_of_no_picture(server: Server) -> None:
    job = server.wait(server.submit()["id"])
    assert server.client.get(f"/v1/images/{job['id']}-0/content").status_code == 200
    for id in (f"{job['id']}-1", f"{job['id']}-x", job["id"], "-0", "x-²"):
        assert server.client.get(f"/v1/images/{id}/content").status_code == 404


@pytest.mark.parametrize("count", range(4))
def test_a_stream_has_partial_pictures_then_the_picture(tmp_path: Path, count: int) -> None:
    with serving(tmp_path, Gradient(step_seconds=0.02)) as server:
        events = list(
            client_of(server).images.generate(
                prompt="an apple",
                stream=True,
                partial_images=count,
                extra_body={"steps": 8, "seed": 3},
            )
        )
    *partials, last = events
    assert min(count, 1) <= len(partials) <= count
    for number, event in enumerate(partials):
        assert isinstance(event, ImageGenPartialImageEvent)
        ImageGenPartialImageEvent.model_validate(event.model_dump(), strict=True)
        assert event.partial_image_index == number and event.size == "auto"
        assert opened(event.b64_json).size == (64, 64)
    assert isinstance(last, ImageGenCompletedEvent)
    ImageGenCompletedEvent.model_validate(last.model_dump(), strict=True)
    assert not ImageChops.difference(opened(last.b64_json), gradient(64, 64, 3, 8)).getbbox()


def test_every_picture_of_a_stream_is_sent_once(client: openai.OpenAI) -> None:
    events = client.images.generate(prompt="an apple", n=3, stream=True)
    indices = [event.model_dump()["image_index"] for event in events]
    assert sorted(indices) == [0, 1, 2]


def test_event_names_stand_beside_their_data(server: Server) -> None:
    answer = server.post("/v1/images/generations", prompt="an apple", stream=True)
    lines = [line for line in answer.text.splitlines() if line.startswith(("event", "data"))]
    assert lines[0] == "event: image_generation.completed"
    assert json.loads(lines[1].removeprefix("data: "))["type"] == "image_generation.completed"


def test_partial_pictures_come_in_equal_distances() -> None:
    partials = Partials(3)
    assert [partials.take(0, step, 8) for step in range(1, 9)] == [
        None, 0, None, 1, None, 2, None, None,
    ]  # fmt: skip
    assert partials.take(1, 8, 8) == 0, "each picture has its own"


def test_the_async_client(server: Server) -> None:
    async def ask() -> tuple[Any, list[Any]]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            one = client.images.generate(prompt="an apple", n=2)
            other = await client.images.generate(prompt="an apple", stream=True)
            return await one, [event async for event in other]

    answer, events = asyncio.run(ask())
    assert len(answer.data) == 2 and events[-1].type == "image_generation.completed"


def newest(server: Server) -> dict[str, Any]:
    return server.client.get("/v1/jobs?limit=1").json()["data"][0]


def test_an_edit_draws_where_the_mask_is_transparent(server: Server, client: openai.OpenAI) -> None:
    answer = client.images.edit(
        image=SQUARE, mask=("mask.png", png(holed())), prompt="a pear", n=2, extra_body={"seed": 4}
    )
    assert answer.data is not None and len(answer.data) == 2
    job = newest(server)
    assert job["request"]["seed"] == 4
    sent = server.client.get(f"/v1/jobs/{job['id']}/inputs/image").content
    assert sent == SQUARE[1]
    mask = Image.open(io.BytesIO(server.client.get(f"/v1/jobs/{job['id']}/inputs/mask").content))
    assert mask.mode == "L" and mask.getpixel((0, 0)) == 255 and mask.getpixel((63, 0)) == 0


def test_a_list_of_one_image_and_a_stream_of_an_edit(client: openai.OpenAI) -> None:
    events = client.images.edit(image=[SQUARE], prompt="a pear", stream=True, partial_images=1)
    assert [event.type for event in events][-1] == "image_edit.completed"


def test_loras_in_a_form(server: Server, client: openai.OpenAI) -> None:
    more = {"lora": [{"name": "film", "scale": 0.5}, {"name": "ink", "scale": 1}], "strength": 0.5}
    client.images.edit(image=SQUARE, prompt="a pear", extra_body=more)
    job = newest(server)
    assert [(one["name"], one["scale"]) for one in job["lora"]] == [("film", 0.5), ("ink", 1.0)]
    assert job["request"]["strength"] == 0.5


def test_an_edit_as_json(server: Server) -> None:
    image = "data:image/png;base64," + base64.b64encode(SQUARE[1]).decode()
    for body in ({"image": image}, {"images": [{"image_url": image}]}):
        answer = server.post("/v1/images/edits", prompt="a pear", **body)
        assert answer.status_code == 200, answer.text
    away = server.post("/v1/images/edits", prompt="a pear", image="http://127.0.0.1/a.png")
    assert away.status_code == 400 and "URL" in away.json()["error"]["message"]


def test_the_models(client: openai.OpenAI) -> None:
    assert [one.id for one in client.models.list()] == ["gradient"]
    assert client.models.retrieve("gradient").object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("some/other")


def test_a_key_is_needed(tmp_path: Path) -> None:
    with serving(tmp_path, keys=Keys([("me", "a-secret-of-some-length")])) as server:
        with pytest.raises(openai.AuthenticationError):
            client_of(server).images.generate(prompt="an apple")
        assert client_of(server, "a-secret-of-some-length").images.generate(prompt="an apple").data


def test_leaving_a_stream_cancels_its_job(tmp_path: Path) -> None:
    with serving(tmp_path, Gradient(step_seconds=0.05)) as server:
        more = {"steps": 100}
        with client_of(server).images.generate(
            prompt="an apple", stream=True, partial_images=3, extra_body=more
        ) as events:
            next(iter(events))
        job = server.service.jobs(LOCAL)[0]
        assert server.wait(job.id, "cancelled")["images"][0]["step"] < 100


def test_a_failure_in_a_stream_is_raised_by_the_client(tmp_path: Path) -> None:
    def fail(what: str, sheets: Any) -> None:
        if what == "step":
            raise ValueError("broken")

    with serving(tmp_path, Gradient(fail=fail)) as server:
        with pytest.raises(openai.APIError, match="drawing failed"):
            list(client_of(server).images.generate(prompt="an apple", stream=True))
        with pytest.raises(openai.InternalServerError, match="drawing failed"):
            client_of(server).images.generate(prompt="an apple")


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"n": 0}, "n", "n must be 1 to"),
    ({"n": 99}, "n", "n must be 1 to"),
    ({"prompt": ""}, "prompt", "prompt is empty"),
    ({"size": "100x100"}, "width", "multiple of 32"),
    ({"size": "big"}, "size", "size must be auto or as 1024x1024"),
    ({"size": "64x64", "width": 64}, "size", "leave one of them out"),
    ({"nope": 1}, "nope", "unknown key nope"),
    ({"model": "gpt-image-1"}, "model", "model must be 'gradient'"),
    ({"quality": "high"}, "quality", "auto"),
    ({"background": "transparent"}, "background", "opaque"),
    ({"partial_images": 2}, "partial_images", "stream"),
    ({"stream": True, "response_format": "url"}, "response_format", "b64_json"),
    ({"output_format": "gif"}, "output_format", "webp"),
    ({"steps": 2, "num_inference_steps": 2}, "num_inference_steps", "one and the same"),
    ({"steps": 0}, "num_inference_steps", "num_inference_steps must be 1"),
    ({"cfg_scale": -1}, "guidance_scale", "guidance_scale must be 0"),
    ({"seed": "7"}, "seed", "integer"),
    ({"seed": True}, "seed", "integer"),
    ({"lora": [{"nam": "film"}]}, "lora.0.name", "required"),
    ({"stream": True, "n": 0}, "n", "n must be 1"),
]


@pytest.mark.parametrize(("body", "param", "message"), WRONG, ids=lambda value: str(value)[:40])
def test_what_cannot_be_done_is_an_error(
    server: Server, body: dict[str, Any], param: str, message: str
) -> None:
    answer = server.post("/v1/images/generations", **({"prompt": "an apple"} | body))
    assert answer.status_code == (404 if param == "model" else 400)
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error" and error["code"]
    assert (error["param"], message in error["message"]) == (param, True), error


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"image": ("a.png", b"junk")}, "no PNG, JPEG or WebP"),
        ({"image": [SQUARE, SQUARE]}, "one image, got 2"),
        ({"image": SQUARE, "mask": SQUARE}, "mask has no transparency"),
        ({"image": SQUARE, "mask": ("m.png", png(holed(32)))}, "32 x 32"),
    ],
    ids=["junk", "two", "no hole", "another size"],
)
def test_images_that_cannot_be_edited(
    client: openai.OpenAI, files: dict[str, Any], message: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        client.images.edit(prompt="a pear", **files)


def test_an_edit_without_an_image(server: Server) -> None:
    answer = server.post("/v1/images/edits", prompt="a pear")
    assert answer.status_code == 400 and "got 0" in answer.json()["error"]["message"]
    twice = [("prompt", (None, b"a")), ("prompt", (None, b"b"))]
    answer = server.client.post("/v1/images/edits", files=twice)
    assert "given 2 times" in answer.json()["error"]["message"]


def test_the_names_of_clients_are_fields() -> None:
    assert set(CLIENT_NAMES.values()) <= set(get_type_hints(Generation))
