"""A1111's API, asked by `webuiapi`, its clients' Python library, and as other programs ask it.

Also tests `serve/api/a1111_body.py`, `serve/api/a1111_answer.py`, `serve/api/a1111_progress.py`,
`serve/api/a1111_lists.py`.
"""

import asyncio
import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops

from opensana.drawing.picture import SAMPLER_NAMES
from opensana.errors import RequestError
from opensana.request import Request
from opensana.serve.api.a1111_body import Img2Img, Txt2Img, asked
from opensana.serve.api.a1111_progress import Previews
from opensana.serve.gate.keys import LOCAL, Keys
from opensana.serve.jobs.job import ImageRecord, JobRecord
from tests.serve.gradient import Gradient, Server, gradient, serving

webuiapi = pytest.importorskip("webuiapi")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path) as found:
        yield found


def api_of(server: Server, **options: Any) -> Any:
    return webuiapi.WebUIApi(baseurl=f"{server.url}/sdapi/v1", **options)


@pytest.fixture
def api(server: Server) -> Any:
    return api_of(server)


def opened(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


def encoded(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


RED = Image.new("RGB", (64, 64), "red")


def test_pictures_and_what_is_known_of_them(api: Any) -> None:
    result = api.txt2img(
        prompt="an apple", negative_prompt="blur", seed=5, batch_size=2, width=64, height=96,
        steps=3, cfg_scale=2, sampler_name="Euler", sampler_index="Euler",
    )  # fmt: skip
    for image, seed in zip(result.images, (5, 6), strict=True):
        assert not ImageChops.difference(image, gradient(64, 96, seed, 3)).getbbox()
    info = result.info
    assert (info["seed"], info["all_seeds"]) == (5, [5, 6])
    assert (info["width"], info["height"], info["steps"], info["cfg_scale"]) == (64, 96, 3, 2)
    assert info["sampler_name"] == "Euler" and info["warnings"] == []
    assert [text.split("Seed: ")[1].split(",")[0] for text in info["infotexts"]] == ["5", "6"]
    assert info["infotexts"][0].startswith("an apple\nNegative prompt: blur\nSteps: 3")
    assert result.parameters["prompt"] == "an apple"


def test_what_that_library_sends_by_default_is_drawn_and_said(server: Server, api: Any) -> None:
    """512 pixels, 20 steps, a sampler that is not here, and forty fields that change nothing."""
    result = api.txt2img(prompt="an apple")
    assert result.image.size == (512, 512)
    assert len(result.info["warnings"]) == 1 and "Euler a" in result.info["warnings"][0]
    body = {"prompt": "an apple", "restore_faces": True, "enable_hr": True, "tiling": False}
    answer = server.post("/sdapi/v1/txt2img", **body, unheard_of={"a": 1}, subseed_strength=0.5)
    assert answer.status_code == 200
    warnings = json.loads(answer.json()["info"])["warnings"]
    assert warnings == json.loads(answer.headers["x-opensana-warnings"])
    for name in ("restore_faces", "enable_hr", "unheard_of", "subseed_strength"):
        assert any(line.startswith(name) for line in warnings)
    assert len(warnings) == 4


def test_images_and_masks(server: Server, api: Any) -> None:
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 32, 64))
    result = api.img2img(
        images=[RED], mask_image=mask, prompt="a pear", width=64, height=64, seed=3,
        denoising_strength=0.5, inpaint_full_res=False, sampler_name="Euler",
    )  # fmt: skip
    assert result.image.size == (64, 64) and result.info["warnings"] == []
    assert result.info["denoising_strength"] == 0.5
    assert result.parameters["init_images"] is None and result.parameters["mask"] is None
    job = server.client.get("/v1/jobs?limit=1").json()["data"][0]
    assert job["inputs"]["image"] and job["inputs"]["mask"] and job["kind"] == "a1111"


def body(**fields: Any) -> dict[str, Any]:
    return {"prompt": "a pear"} | fields


CAPABILITIES: dict[str, Any] = {"model": "m", "solvers": ["flow_dpm", "euler"]}


def test_an_inverted_mask_is_drawn_where_it_is_black() -> None:
    mask, buffer = Image.new("L", (64, 64), 0), io.BytesIO()
    mask.paste(255, (0, 0, 32, 64))
    mask.save(buffer, format="PNG")
    text = base64.b64encode(buffer.getvalue()).decode()
    sent = body(init_images=[text], mask=text, inpainting_mask_invert=1)
    order = asked(Img2Img.model_validate(sent), CAPABILITIES).order
    inverted = Image.open(io.BytesIO(order.mask or b""))
    assert inverted.getpixel((0, 0)) == 0 and inverted.getpixel((63, 0)) == 255


def test_a_body_becomes_an_order() -> None:
    sent = body(
        prompt="a <lora:film:.5> cat<lora:ink>", seed=-1, steps="12", cfg_scale=7, n_iter=2,
        batch_size=3, width=512, height=500, sampler_name="DPM++ 2M", scheduler="Automatic",
    )  # fmt: skip
    found = asked(Txt2Img.model_validate(sent), CAPABILITIES)
    request = found.order.request
    assert (request.prompt, request.seed, request.steps, request.guidance) == ("a cat", None, 12, 7)
    assert (request.images, request.width, request.height) == (6, 512, 512)
    assert request.solver == "flow_dpm" and request.strength is None
    assert [(one.name, one.scale) for one in found.order.loras] == [("film", 0.5), ("ink", 1.0)]
    assert found.warnings == ("height 500 is no multiple of 32; drawn with 512",)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("override_settings", {"sd_model_checkpoint": "other"}),
        ("override_settings", {"CLIP_stop_at_last_layers": 2}),
        ("override_settings", {"sd_vae": "some.pt"}),
        ("alwayson_scripts", {"ADetailer": {"args": [True, {}]}}),
        ("styles", ["cinematic"]),
        ("scheduler", "Karras"),
        ("script_name", "x/y plot"),
        ("refiner_checkpoint", "xl"),
        ("prompt", "a (red:1.3) pear"),
        ("a" * 5000, "b" * 5000),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_not_done_is_one_warning(field: str, value: Any) -> None:
    found = asked(Txt2Img.model_validate(body() | {field: value}), CAPABILITIES)
    assert len(found.warnings) == 1 and len(found.warnings[0]) < 250


@pytest.mark.parametrize(
    "fields",
    [
        {"override_settings": {"sd_model_checkpoint": "m", "sd_vae": "Automatic"}},
        {"alwayson_scripts": {"ADetailer": {"args": [False]}, "ControlNet": {"args": []}}},
        {"alwayson_scripts": {}, "styles": [], "script_name": None, "script_args": [1]},
        {"eta": 1.0, "s_noise": 1, "s_churn": 0, "subseed": 5, "hr_upscaler": "Latent"},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_what_changes_nothing_is_no_warning(fields: dict[str, Any]) -> None:
    assert asked(Txt2Img.model_validate(body() | fields), CAPABILITIES).warnings == ()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": " "}, "prompt is empty"),
        ({"steps": 0}, "steps must be 1"),
        ({"prompt": "a <lora:film:much>"}, "must be a number"),
        ({"prompt": "a <lora:film:nan>"}, "must be a number"),
        ({"init_images": []}, "init_images is empty"),
        ({"init_images": ["http://127.0.0.1/a.png"]}, "URL"),
        ({"init_images": ["a", "b"]}, "has 2 pictures"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_can_be_no_picture_is_an_error(fields: dict[str, Any], message: str) -> None:
    kind = Img2Img if "init_images" in fields else Txt2Img
    sent = kind.model_validate(body() | fields)
    with pytest.raises(RequestError, match=message):
        asked(sent, CAPABILITIES)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": " "}, "prompt"),
        ({"prompt": "a <lora:film:nan>"}, "prompt"),
        ({"steps": 0}, "steps"),
        ({"steps": 900}, "steps"),
        ({"cfg_scale": -1}, "cfg_scale"),
        ({"batch_size": 4, "n_iter": 5}, "batch_size"),
        ({"width": 10**6}, "width"),
        ({"init_images": []}, "init_images"),
        ({"init_images": ["AAAA"]}, "init_images"),
        ({"init_images": [encoded(RED)], "mask": "AAAA"}, "mask"),
        ({"init_images": [encoded(RED)], "denoising_strength": 3}, "denoising_strength"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_error_names_the_field_as_the_client_does(
    server: Server, fields: dict[str, Any], param: str
) -> None:
    way = "img2img" if "init_images" in fields else "txt2img"
    answer = server.post(f"/sdapi/v1/{way}", **(body() | fields))
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == param and error["message"].startswith((param, "the ")), error


def test_errors_have_the_fields_that_clients_read(server: Server) -> None:
    for fields in ({"prompt": ""}, {"prompt": "a", "steps": "many"}):
        answer = server.post("/sdapi/v1/txt2img", **fields)
        assert answer.status_code == 400
        assert {"error", "detail", "body", "errors"} <= set(answer.json())


@pytest.mark.parametrize("odd", ['"eta": NaN', '"denoising_strength": NaN', '"x": "\\ud800"'])
def test_what_is_no_json_comes_back_as_json(server: Server, odd: str) -> None:
    content = '{"prompt": "an apple", ' + odd + "}"
    kind = {"content-type": "application/json"}
    answer = server.client.post("/sdapi/v1/txt2img", content=content, headers=kind)
    assert answer.status_code == 200 and "NaN" not in answer.text
    assert len(answer.json()["images"]) == 1


def test_a_task_is_found_by_its_client_s_name(tmp_path: Path) -> None:
    with serving(tmp_path, Gradient(step_seconds=0.05)) as server:
        fields = {"prompt": "an apple", "steps": 20, "force_task_id": "task(one)"}
        thread = threading.Thread(target=lambda: server.post("/sdapi/v1/txt2img", **fields))
        thread.start()
        seen: list[dict[str, Any]] = []
        while thread.is_alive():
            query = "?id_task=task(one)"
            seen.append(server.client.get(f"/sdapi/v1/progress{query}").json())
            time.sleep(0.05)
        other = server.client.get("/sdapi/v1/progress?id_task=task(two)").json()
    busy = [one for one in seen if one["state"]["job_count"]]
    assert busy and other["state"]["job_count"] == 0 and other["progress"] == 0
    shares = [one["progress"] for one in busy]
    assert shares == sorted(shares) and 0 < shares[0] < 0.5 < shares[-1] <= 1
    assert busy[-1]["state"]["sampling_steps"] == 20
    preview = next(one["current_image"] for one in busy if one["current_image"])
    assert opened(preview).size == (8, 8)


def test_interrupt_ends_the_caller_s_job_and_keeps_what_is_complete(tmp_path: Path) -> None:
    keys = [(name, f"the-secret-of-{name}") for name in ("me", "you")]
    with serving(tmp_path, Gradient(step_seconds=0.03), keys=Keys(keys), batch=1) as server:
        mine, yours = (api_of(server, username="any", password=secret) for _, secret in keys)
        results: list[Any] = []
        ask = {"prompt": "an apple", "steps": 10, "width": 64, "height": 64, "batch_size": 9}
        thread = threading.Thread(target=lambda: results.append(mine.txt2img(**ask)))
        thread.start()
        while not mine.get_progress()["state"]["job_no"]:
            time.sleep(0.02)
        assert yours.get_progress()["state"]["job_count"] == 0
        yours.interrupt()
        assert mine.get_progress()["state"]["job_count"] == 9
        assert mine.interrupt() == {}
        thread.join()
        mine.util_wait_for_ready(check_interval=0.05)
    (result,) = results
    assert 1 <= len(result.images) < 9 and "interrupted" in result.info["warnings"]
    assert len(result.info["infotexts"]) == len(result.images)


def test_the_lists_that_clients_read_first(server: Server, api: Any) -> None:
    assert api.util_get_model_names() == ["gradient"]
    assert api.util_get_current_model() == "gradient"
    assert set(api.util_get_sampler_names()) == {SAMPLER_NAMES["flow_dpm"], SAMPLER_NAMES["euler"]}
    assert api.util_get_scheduler_names() == ["automatic"]
    assert [one["name"] for one in api.get_upscalers()] == ["None"]
    for read in ("sd_vae", "latent_upscale_modes", "hypernetworks", "prompt_styles",
                 "face_restorers", "realesrgan_models"):  # fmt: skip
        assert getattr(api, f"get_{read}")() == []
    assert api.get_embeddings()["loaded"] == {} and api.get_scripts()["txt2img"] == []
    assert api.get_cmd_flags()["api"] is True
    memory = api.get_memory()["ram"]
    assert 0 < memory["free"] <= memory["total"]
    for name in ("refresh-checkpoints", "refresh-vae", "refresh-loras"):
        assert server.client.post(f"/sdapi/v1/{name}").json() is None
    assert server.client.get("/sdapi/v1/sd-modules").json() == []
    assert server.client.get("/sdapi/v1/nothing").status_code == 404


def test_options_come_back_whole_and_name_this_model(server: Server, api: Any) -> None:
    options = api.get_options()
    assert api.set_options(options) is None
    api.util_set_model("gradient")
    other = server.post("/sdapi/v1/options", **(options | {"sd_model_checkpoint": "xl"}))
    assert other.status_code == 404 and "'gradient'" in other.json()["detail"]
    warned = server.post("/sdapi/v1/options", CLIP_stop_at_last_layers=2)
    assert warned.status_code == 200 and "CLIP_stop" in warned.headers["x-opensana-warnings"]


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_the_settings_of_a_picture(server: Server, api: Any, format: str) -> None:
    made = {"prompt": "an apple, ripe", "output_format": format, "seed": 9}
    drawn = server.post("/v1/images/generations", **made).json()["data"][0]["b64_json"]
    found = server.post("/sdapi/v1/png-info", image=drawn).json()
    assert found["info"].startswith("an apple, ripe\nSteps: 4")
    assert found["parameters"]["Seed"] == "9" and found["parameters"]["Size-1"] == "64"
    assert api.png_info(RED).info == ""
    junk = server.post("/sdapi/v1/png-info", image=base64.b64encode(b"junk").decode())
    assert junk.status_code == 400 and "no PNG" in junk.json()["detail"]


def test_previews_are_made_only_while_somebody_asks() -> None:
    closed: list[bool] = []

    class Service:
        async def events(self, id: str, caller: Any, previews: bool) -> Any:
            try:
                for number in range(3):
                    data = {"b64_json": str(number)}
                    yield type("Event", (), {"type": "preview", "data": data})
                    await asyncio.sleep(0)
            finally:
                closed.append(previews)

    record = JobRecord(
        id="job", key="local", kind="a1111", state="running", created=0.0,
        request=Request("an apple"),
        images=(ImageRecord(index=0, seed=1, width=64, height=64, steps=4),),
    )  # fmt: skip

    async def ask() -> list[str | None]:
        clock = [0.0]
        previews = Previews(Service(), lambda: clock[0])  # type: ignore[arg-type]
        first = previews.newest(record, LOCAL)
        await asyncio.sleep(0)
        second = previews.newest(record, LOCAL)
        clock[0] = 100.0
        for _ in range(5):
            await asyncio.sleep(0)
        return [first, second]

    assert asyncio.run(ask()) == [None, "0"] and closed == [True]
