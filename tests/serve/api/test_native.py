"""The API of its own, over a painter of gradients.

Also tests `serve/api/health.py`, `serve/jobs/job.py`, `serve/jobs/events.py`,
`serve/jobs/order.py`, `serve/jobs/limits.py`, `cli/serve.py`.
"""

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from tests.serve.gradient import Gradient, Server, gradient, serving


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path) as found:
        yield found


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """For what changes nothing."""
    with serving(tmp_path_factory.mktemp("serve")) as found:
        yield found


def test_a_job_becomes_pictures_of_its_seeds(server: Server) -> None:
    job = server.submit(seed=7, images=2)
    done = server.wait(job["id"])
    assert [one["seed"] for one in done["images"]] == [7, 8]
    for image in done["images"]:
        png = server.client.get(image["url"])
        assert png.headers["content-type"] == "image/png"
        drawn = Image.open(io.BytesIO(png.content))
        assert not ImageChops.difference(drawn, gradient(64, 64, image["seed"], 4)).getbbox()


def test_the_server_says_that_it_is_ready(server: Server) -> None:
    assert server.client.get("/healthz").json() == {"status": "ok"}
    assert server.client.get("/readyz").json() == {"status": "ready"}


def events(server: Server, id: str, query: str = "", **headers: str) -> list[dict[str, str]]:
    """The events of a job, to its end."""
    text = server.client.get(f"/v1/jobs/{id}/events{query}", headers=headers).text
    blocks = (block.splitlines() for block in text.replace("\r\n", "\n").split("\n\n"))
    fields = [dict(line.split(": ", 1) for line in lines if line[0] != ":") for lines in blocks]
    return [one for one in fields if one]


def test_events_tell_a_job_from_beginning_to_end(tmp_path: Path) -> None:
    with serving(tmp_path, Gradient(0.03)) as server:
        job = server.submit(steps=5)
        found = events(server, job["id"], "?previews=true")
        kinds = [one["event"] for one in found]
        assert kinds[0] == "job" and kinds[-1] == "completed"
        assert {"step", "preview", "image"} <= set(kinds)
        assert all(json.loads(one["data"])["type"] == one["event"] for one in found)
        preview = json.loads(found[kinds.index("preview")]["data"])
        png = base64.b64decode(preview["b64_json"])
        assert Image.open(io.BytesIO(png)).size == (preview["width"], preview["height"])
        late = events(server, job["id"])
        assert [one["event"] for one in late] == ["job", "completed"]


def test_a_reader_that_comes_back_goes_on_where_it_was(tmp_path: Path) -> None:
    with serving(tmp_path, Gradient(0.03)) as server:
        job = server.submit(steps=6, images=2)
        first = events(server, job["id"])
        middle = first[3]["id"]
        again = events(server, job["id"], **{"last-event-id": middle})
        assert "job" not in [one["event"] for one in again]
        assert again[-1]["event"] == "completed"
        assert all(_number(one["id"]) > _number(middle) for one in again)


def _number(id: str) -> int:
    return int(id.split("-")[1])


def test_events_without_being_asked_for_have_no_previews(tmp_path: Path) -> None:
    with serving(tmp_path, Gradient(0.01)) as server:
        found = events(server, server.submit(steps=5)["id"])
        assert "preview" not in [one["event"] for one in found]


WRONG = [
    {"prompt": ""}, {"prompt": 3}, {"prompt": None}, {"prompt": "x", "width": 33},
    {"prompt": "x", "width": -32}, {"prompt": "x", "width": 10**9}, {"prompt": "x", "steps": 0},
    {"prompt": "x", "steps": "4"}, {"prompt": "x", "steps": True}, {"prompt": "x", "steps": 900},
    {"prompt": "x", "guidance": -1}, {"prompt": "x", "guidance": 1e308},
    {"prompt": "x", "seed": -1},
    {"prompt": "x", "images": 0}, {"prompt": "x", "images": 17}, {"prompt": "x", "colour": "red"},
    {"prompt": "x", "solver": "magic"}, {"prompt": "x", "strength": 0.5}, {"prompt": "x" * 40_000},
    {"prompt": "x", "image": "no base64!"}, {"prompt": "x", "image": "http://127.0.0.1/a.png"},
    {"prompt": "x", "image": "file:///etc/passwd"}, {"prompt": "x", "image": "/etc/passwd"},
    {"prompt": "x", "image": "data:image/png,abc"}, {"prompt": "x", "image": "AAAA"},
    {"prompt": "x", "lora": "film"}, {"prompt": "x", "lora": [{"name": 3}]},
    {"prompt": "x", "image": "//evil/share"}, {}, [], "x", 3, None,
]  # fmt: skip


def wrong_field(body: object) -> str:
    """What an error should name: the last key, the prompt where there is none."""
    return next(reversed(body), "prompt") if isinstance(body, dict) else ""


@pytest.mark.parametrize("body", WRONG, ids=lambda body: str(body)[:40])
def test_what_is_wrong_is_said_in_one_shape(shared: Server, body: object) -> None:
    response = shared.client.post("/v1/jobs", json=body)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error" and "Traceback" not in error["message"]
    assert (error["param"] or "").split(".")[0] == wrong_field(body)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"prompt": "x", "guidance": NaN}',
        b'{"prompt": "x", "guidance": Infinity}', b'{"prompt": "\\ud800"}', b'{"prompt":"x"}x',
    ],
    ids=range(8),
)  # fmt: skip
def test_what_is_no_json_is_said_in_one_shape(shared: Server, body: bytes) -> None:
    response = shared.client.post("/v1/jobs", content=body)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


NAMES = ["..", "%2e%2e", "..%2f..", "..\\..", "%00", "/etc/passwd", "job_", "a" * 300, "con"]


@pytest.mark.parametrize("name", NAMES)
def test_no_name_leads_out_of_the_folder(shared: Server, name: str) -> None:
    for path in (f"/v1/jobs/{name}", f"/v1/jobs/{name}/images/0", f"/v1/jobs/{name}/inputs/image"):
        response = shared.client.get(path)
        assert response.status_code in (400, 404)
        assert response.json()["error"]["type"] == "invalid_request_error"


def test_other_addresses_and_methods_have_the_same_shape(shared: Server) -> None:
    for method, path, status in (("GET", "/nowhere", 404), ("PUT", "/v1/jobs", 405)):
        response = shared.client.request(method, path)
        assert response.status_code == status
        assert response.json()["error"]["type"] == "invalid_request_error"


def test_a_form_brings_pictures_as_files(shared: Server) -> None:
    png = _png(Image.new("RGB", (96, 64), "red"))
    form = {"request": json.dumps({"prompt": "x", "strength": 0.5})}
    response = shared.client.post("/v1/jobs", data=form, files={"image": ("a.png", png)})
    assert response.status_code == 202, response.text
    job = shared.wait(response.json()["id"])
    assert job["inputs"]["image"] and job["images"][0]["width"] == 96
    assert shared.client.get(f"/v1/jobs/{job['id']}/inputs/image").content == png
    assert shared.client.get(f"/v1/jobs/{job['id']}/inputs/mask").status_code == 404


def test_a_mask_of_another_size_is_refused(shared: Server) -> None:
    pictures = {
        name: base64.b64encode(_png(Image.new("RGB", (side, 64), "white"))).decode()
        for name, side in (("image", 64), ("mask", 32))
    }
    response = shared.post("/v1/jobs", prompt="x", **pictures)
    assert response.status_code == 400 and "mask" in response.json()["error"]["message"]


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def test_jobs_are_listed_newest_first_in_pages(server: Server) -> None:
    ids = [server.submit()["id"] for _ in range(5)]
    first = server.client.get("/v1/jobs?limit=3").json()
    assert [one["id"] for one in first["data"]] == ids[:1:-1] and first["has_more"]
    rest = server.client.get(f"/v1/jobs?limit=3&before={ids[2]}").json()
    assert [one["id"] for one in rest["data"]] == ids[1::-1] and not rest["has_more"]


def test_a_finished_job_can_be_deleted(server: Server) -> None:
    job = server.wait(server.submit()["id"])
    assert server.client.delete(f"/v1/jobs/{job['id']}").status_code == 204
    assert server.client.get(f"/v1/jobs/{job['id']}").status_code == 404
    assert server.client.get(job["images"][0]["url"]).status_code == 404


def test_capabilities_say_what_may_be_asked_for(shared: Server) -> None:
    found = shared.client.get("/v1/capabilities").json()
    assert found["model"] == "gradient" and found["limits"]["images"]["max"] == 16
    assert {"defaults", "queue", "solvers", "sizes", "keep", "previews", "exact"} <= set(found)
    assert shared.client.get("/openapi.json").json()["paths"]["/v1/jobs"]["post"]["requestBody"]
