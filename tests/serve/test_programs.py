"""What programs send that cannot be installed here, replayed from their published sources.

Open WebUI (`routers/images.py`), SillyTavern (`endpoints/stable-diffusion.js`, its extension) and
LibreChat. Each test is one use of the program, in the order of its calls.
"""

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from opensana.serve.gate.keys import Keys
from tests.serve.gradient import Server, serving

KEY = "a-secret-of-some-length"
BASIC = {"authorization": "Basic " + base64.b64encode(f"user:{KEY}".encode()).decode()}
BEARER = {"authorization": f"Bearer {KEY}"}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path, keys=Keys([("program", KEY)])) as found:
        yield found


def opened(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


def test_open_webui_with_its_openai_engine(server: Server) -> None:
    body = {
        "model": "gradient",
        "prompt": "an apple",
        "n": 1,
        "size": "128x128",
        "response_format": "b64_json",
        "steps": 6,
        "negative_prompt": "blur",  # what its administrator adds as JSON
    }
    url = "/v1/images/generations?api-version=2026-01-01"
    answer = server.client.post(url, json=body, headers=BEARER)
    answer.raise_for_status()
    for image in answer.json()["data"]:
        assert not image.get("url") and opened(image["b64_json"]).size == (128, 128)

    # Some models answer with URLs, which are fetched with the same headers.
    del body["response_format"]
    body |= {"response_format": "url"}
    url = server.client.post("/v1/images/generations", json=body, headers=BEARER).json()["data"][0]
    picture = server.client.get(url["url"], headers=BEARER)
    assert picture.headers["content-type"].split("/")[0] == "image"
    assert server.client.get(url["url"]).status_code == 401


def test_open_webui_edits(server: Server) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(buffer, format="JPEG")
    fields = {"model": "gradient", "prompt": "a pear", "n": "1", "response_format": "b64_json"}
    parts = [(name, (None, text)) for name, text in fields.items()]
    for name in ("image", "image[]"):
        file = (name, ("8c7e.jpg", buffer.getvalue(), "image/jpeg"))
        answer = server.client.post("/v1/images/edits", files=[*parts, file], headers=BEARER)
        answer.raise_for_status()
        assert opened(answer.json()["data"][0]["b64_json"]).size == (64, 64)


def test_open_webui_with_its_automatic1111_engine(server: Server) -> None:
    client = server.client
    options = client.get("/sdapi/v1/options", headers=BASIC)  # "Verify Connection"
    options.raise_for_status()
    models = client.get("/sdapi/v1/sd-models", headers=BASIC).json()
    assert [{"id": one["title"], "name": one["model_name"]} for one in models] == [
        {"id": "gradient", "name": "gradient"}
    ]
    chosen = options.json() | {"sd_model_checkpoint": models[0]["title"]}
    client.post("/sdapi/v1/options", json=chosen, headers=BASIC).raise_for_status()
    body = {
        "prompt": "an apple", "batch_size": 2, "width": 512, "height": 512, "steps": 5,
        "negative_prompt": "blur",
        "sampler_name": "Euler", "cfg_scale": 4.5, "scheduler": "Automatic",
    }  # fmt: skip
    answer = client.post("/sdapi/v1/txt2img", json=body, headers=BASIC).json()
    assert len(answer["images"]) == 2 and isinstance(answer["info"], str)
    assert json.loads(answer["info"])["warnings"] == []
    assert client.get("/sdapi/v1/options").status_code == 401


def silly_tavern_body() -> dict[str, Any]:
    """With its settings as they are first; an undefined value is not sent."""
    return {
        "prompt": "best quality, an apple",
        "negative_prompt": "lowres, bad anatomy",
        "sampler_name": "Euler",
        "scheduler": "automatic",
        "steps": 20,
        "cfg_scale": 7,
        "width": 512,
        "height": 512,
        "restore_faces": False,
        "enable_hr": False,
        "hr_upscaler": "Latent",
        "hr_scale": 2.0,
        "hr_additional_modules": [],
        "denoising_strength": 0.7,
        "hr_second_pass_steps": 0,
        "override_settings": {"CLIP_stop_at_last_layers": 1},
        "override_settings_restore_afterwards": True,
        "clip_skip": 1,
        "save_images": True,
        "send_images": True,
        "do_not_save_grid": False,
        "do_not_save_samples": False,
        # What its server gets besides and sends on.
        "url": "http://localhost:7860",
        "auth": "user:" + KEY,
    }


def test_silly_tavern(server: Server) -> None:
    client = server.client

    def read(name: str) -> Any:
        answer = client.get(f"/sdapi/v1/{name}", headers=BASIC)
        answer.raise_for_status()
        return answer.json()

    names = [one["name"] for one in read("upscalers")]
    names[1:1] = [one["name"] for one in read("latent-upscale-modes")]
    assert names[0] == "None"
    for name in ("sd-vae", "sd-modules"):  # both at once; the first that answers counts
        assert [one["model_name"] for one in read(name)] == []
    assert "Euler" in [one["name"] for one in read("samplers")]
    assert [one["name"] for one in read("schedulers")] == ["automatic"]
    models = [{"value": one["title"], "text": one["title"]} for one in read("sd-models")]
    assert read("options")["sd_model_checkpoint"] == models[0]["value"]
    chosen = {"sd_model_checkpoint": models[0]["value"]}
    client.post("/sdapi/v1/options", json=chosen, headers=BASIC).raise_for_status()
    state = read("progress")  # it waits until a model is loaded
    assert state["progress"] == 0.0 and state["state"]["job_count"] == 0

    assert "forge_preset" not in read("options")
    answer = client.post("/sdapi/v1/txt2img", json=silly_tavern_body(), headers=BASIC)
    answer.raise_for_status()
    assert opened(answer.json()["images"][0]).size == (512, 512)
    assert client.post("/sdapi/v1/interrupt", headers=BASIC).status_code == 200


def test_silly_tavern_s_body_changes_nothing_unsaid(server: Server) -> None:
    """Its address and password for this server come with the body, and go nowhere."""
    answer = server.client.post("/sdapi/v1/txt2img", json=silly_tavern_body(), headers=BASIC)
    assert KEY not in answer.text and "x-opensana-warnings" not in answer.headers


def test_libre_chat(server: Server) -> None:
    body = {
        "prompt": "an apple", "negative_prompt": "blur", "cfg_scale": 4.5, "steps": 22,
        "width": 1024, "height": 1024,
    }  # fmt: skip
    answer = server.client.post("/sdapi/v1/txt2img", json=body, headers=BASIC).json()
    assert opened(answer["images"][0]).size == (1024, 1024)
    info = json.loads(answer["info"])
    assert (info["width"], info["height"]) == (1024, 1024) and isinstance(info["seed"], int)
    assert info["infotexts"][0].startswith("an apple\nNegative prompt: blur\nSteps: 22")
