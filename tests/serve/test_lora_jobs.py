"""Requests that name LoRAs, by each API: what comes of them, and what of wrong ones.

What a file must be is tested in test_loras.py, what is drawn in test_merged.py.
"""

import io
import json
import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from opensana.drawing.picture import read_note
from opensana.errors import OutOfMemory, RequestError
from opensana.serve.gate.keys import Keys
from opensana.serve.jobs import schedule
from opensana.serve.painter import Plan
from tests.serve.gradient import Gradient, Server, digest, gradient, serving
from tests.serve.painting.test_loras import HOSTILE
from tests.serve.standing import Standing

FILM, INK = {"name": "film", "scale": 0.8}, {"name": "ink", "scale": -0.5}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("server")) as found:
        yield found


def sent(server: Server, path: str, body: Any) -> Any:
    """The answer to a body that no library makes: half surrogate pairs and all."""
    content = body if isinstance(body, str) else json.dumps(body)
    kind = {"content-type": "application/json"}
    return server.client.post(path, content=content, headers=kind)


def check_error(answer: Any, param: str | None) -> str:
    """The message of an error in OpenAI's shape."""
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_value")
    assert error["param"] == param
    return error["message"]


def test_a_job_has_its_loras_with_their_digests(shared: Server, tmp_path: Path) -> None:
    job = shared.submit(lora=[FILM, INK], seed=3)
    expected = [FILM | {"sha256": digest("film")}, INK | {"sha256": digest("ink")}]
    done = shared.wait(job["id"])
    assert job["lora"] == done["lora"] == expected
    png = shared.client.get(done["images"][0]["url"]).content
    (tmp_path / "drawn.png").write_bytes(png)
    note = read_note(tmp_path / "drawn.png")
    assert (note["lora_name"], note["lora_scale"]) == (["film", "ink"], [0.8, -0.5])
    image = Image.open(io.BytesIO(png)).convert("RGB")
    assert image.tobytes() == gradient(64, 64, 3, 4 + 3).tobytes(), "it was drawn with both"


def test_a_weight_left_out_is_one(shared: Server) -> None:
    assert shared.submit(lora=[{"name": "film"}])["lora"][0]["scale"] == 1.0
    assert shared.submit(lora=[])["lora"] == shared.submit()["lora"] == []


def test_the_capabilities_list_them(shared: Server) -> None:
    (film, _) = shared.client.get("/v1/capabilities").json()["loras"]
    assert set(film) == {"name", "sha256", "rank", "bytes", "trigger_words"}


def test_openai_s_api_takes_them(shared: Server) -> None:
    answer = shared.post("/v1/images/generations", prompt="a cat", seed=3, lora=[FILM])
    assert answer.status_code == 200, answer.text
    (newest, *_) = shared.client.get("/v1/jobs").json()["data"]
    assert [(one["name"], one["scale"]) for one in newest["lora"]] == [("film", 0.8)]


BODIES = {
    "/v1/jobs": lambda name: {"prompt": "x", "lora": [{"name": name}]},
    "/v1/images/generations": lambda name: {"prompt": "x", "lora": [{"name": name}]},
    "/sdapi/v1/txt2img": lambda name: {"prompt": f"x <lora:{name}:1>"},
}


@pytest.mark.parametrize("path", BODIES)
def test_an_unknown_name_is_said_with_its_field(shared: Server, path: str) -> None:
    message = check_error(
        sent(shared, path, BODIES[path]("other")), "prompt" if "sdapi" in path else "lora"
    )
    assert message == "the LoRA 'other' is not listed here"


@pytest.mark.parametrize("path", BODIES)
def test_no_hostile_name_is_more_than_an_error(shared: Server, path: str) -> None:
    for name in HOSTILE:
        if name == "ink":  # that is listed here
            continue
        answer = sent(shared, path, BODIES[path](name))
        if "sdapi" in path and answer.status_code == 200:
            # A tag ends at its colon or bracket, spaces around it are nothing, and so is no name.
            assert set(name) & set("<>:") or name.strip() in ("film", ""), name
            continue
        assert answer.status_code == 400, (name, answer.text[:200])
        error = answer.json()["error"]
        assert error["type"] == "invalid_request_error" and "Traceback" not in error["message"]
        assert error["param"] is not None or "\ud800" in name, "half a pair is no JSON"
    shared.wait(shared.submit()["id"])


WRONG = [
    '"film"', "3", '{"name": "film"}', '["film"]', "[[]]", "[null]", "[{}]", '[{"scale": 1}]',
    '[{"name": 3}]', '[{"name": null}]', '[{"name": ["film"]}]',
    '[{"name": "film", "scale": NaN}]', '[{"name": "film", "scale": Infinity}]',
    '[{"name": "film", "scale": -Infinity}]', '[{"name": "film", "scale": 1e999}]',
    '[{"name": "film", "scale": []}]',
    '[{"name": "film", "path": "/etc/passwd"}]', '[{"name": "film", "file": "x"}]',
    '[{"name": "film", "sha256": 3}]', '[{"path": "/etc/passwd"}]',
]  # fmt: skip


STRICT = ['[{"name": "film", "scale": "1"}]', '[{"name": "film", "scale": true}]']
"""In a form for OpenAI's API every number is a text."""


@pytest.mark.parametrize(
    ("path", "lora"),
    [("/v1/jobs", lora) for lora in (*WRONG, *STRICT)]
    + [("/v1/images/generations", lora) for lora in WRONG],
)
def test_what_is_no_list_of_loras_is_an_error(shared: Server, path: str, lora: str) -> None:
    answer = sent(shared, path, f'{{"prompt": "x", "lora": {lora}}}')
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error" and error["param"].startswith("lora")


# ------------------------------------------------------------------ turns


class Counted(Gradient):
    """Notes the prompt of each batch and how long lanes took to be ready."""

    def turns(self) -> list[tuple[str, int]]:
        """(prompt, batches) of each turn that a lane had."""
        return [(key, len(list(one))) for key, one in groupby(x[0][0] for x in self.batches)]


def test_lanes_that_must_be_made_ready_take_long_turns_and_none_starves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "CREDIT", 0.0)
    painter = Counted(0.01, ready_seconds=0.1)
    keys = Keys([("a", "a-key-of-some-length"), ("b", "b-key-of-some-length")])
    bearer = {one: {"authorization": f"Bearer {one}-key-of-some-length"} for one in "ab"}
    with serving(tmp_path, painter, keys=keys, headers=bearer["a"]) as server:
        start = time.monotonic()
        for key, lora in (("a", FILM), ("b", INK)):
            body = {"prompt": key, "lora": [lora], "steps": 60}
            answer = server.client.post("/v1/jobs", json=body, headers=bearer[key])
            assert answer.status_code == 202
        for key in "ab":
            done = ""
            while done != "completed":
                assert time.monotonic() < start + 60
                time.sleep(0.02)
                done = server.client.get("/v1/jobs", headers=bearer[key]).json()["data"][0][
                    "status"
                ]
    turns = painter.turns()
    assert 4 <= len(turns) <= 60, "one step each would be 120 turns"
    half = [key for key, count in turns for _ in range(count)][:60]
    assert 15 <= half.count("a") <= 45


def test_a_short_job_without_loras_is_not_kept_behind_a_long_one_with(tmp_path: Path) -> None:
    with serving(tmp_path, Gradient(0.01, ready_seconds=0.05)) as server:
        long = server.submit(lora=[FILM], steps=150, prompt="long")
        server.wait(long["id"], "running")
        short = server.submit(steps=3, prompt="short")
        server.wait(short["id"])
        assert server.job(long["id"])["status"] == "running"
        server.wait(long["id"])


def test_pictures_of_one_set_share_a_batch(tmp_path: Path) -> None:
    with serving(tmp_path, Gradient(0.05)) as server:
        jobs = [server.submit(lora=[FILM], steps=20, prompt=f"p{n}") for n in range(3)]
        for job in jobs:
            server.wait(job["id"])
    assert max(map(len, server.painter.batches)) == 3


def test_a_lora_job_is_cancelled_within_a_step_and_has_previews(tmp_path: Path) -> None:
    with serving(tmp_path, Gradient(0.05)) as server:
        job = server.submit(lora=[FILM], steps=200)
        events = f"/v1/jobs/{job['id']}/events?previews=true"
        with server.client.stream("GET", events) as stream:
            lines = stream.iter_lines()
            assert any(line == "event: preview" for line in lines)
            server.post(f"/v1/jobs/{job['id']}/cancel")
            assert any(line == "event: cancelled" for line in lines)


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RequestError("the LoRA 'film' cannot be read"), "invalid"),
        (OutOfMemory("there is not enough memory"), "out_of_memory"),
        (RuntimeError("a bug"), "failed"),
    ],
    ids=["gone", "memory", "bug"],
)
def test_what_fails_with_a_lora_fails_its_own_job_alone(
    tmp_path: Path, error: Exception, code: str, images: int
) -> None:
    class Broken(Gradient):
        def ready(self, plan: Plan) -> None:
            if any(one.name == "film" for one in plan.loras):
                raise error
            super().ready(plan)

    with serving(tmp_path, Broken(0.01)) as server:
        others = [server.submit(lora=lora, steps=20) for lora in ([], [INK])]
        bad = server.submit(lora=[FILM], images=images)
        assert server.wait(bad["id"], "failed")["error"]["code"] == code
        for other in others:
            server.wait(other["id"])


# ------------------------------------------------------------------ after an end


def test_a_lora_job_is_drawn_again_after_its_server(tmp_path: Path) -> None:
    with serving(tmp_path, Gradient(0.05)) as server:
        job = server.submit(lora=[FILM], steps=100, seed=5)
        server.wait(job["id"], "running")
    with serving(tmp_path) as server:
        done = server.wait(job["id"])
        assert done["lora"] == job["lora"]
        png = server.client.get(done["images"][0]["url"]).content
    image = Image.open(io.BytesIO(png)).convert("RGB")
    assert image.tobytes() == gradient(64, 64, 5, 100 + 8).tobytes()


def test_a_lora_that_is_gone_then_fails_the_job_in_one_line(tmp_path: Path) -> None:
    with serving(tmp_path, Gradient(0.05)) as server:
        job, other = server.submit(lora=[FILM], steps=100), server.submit(lora=[INK], steps=100)
        server.wait(job["id"], "running")
    with serving(tmp_path, Gradient(loras=("ink",))) as server:
        error = server.wait(job["id"], "failed")["error"]
        server.wait(other["id"])
    assert error["code"] == "interrupted"
    assert error["message"] == "the server was stopped, and now: the LoRA 'film' is not listed here"


def test_replicas_draw_with_loras(tmp_path: Path) -> None:
    with serving(tmp_path, Standing()) as server:  # pyright: ignore[reportArgumentType]
        job = server.submit(lora=[FILM], images=2)
        assert job["lora"] == [FILM | {"sha256": digest("film")}]
        done = server.wait(job["id"])
        urls = [one["url"] for one in done["images"]]
        images = [Image.open(io.BytesIO(server.client.get(url).content)) for url in urls]
        for image, seed in zip(images, (1234, 1235), strict=True):
            assert image.convert("RGB").tobytes() == gradient(64, 64, seed, 4 + 8).tobytes()
        answer = server.post("/v1/jobs", prompt="x", lora=[{"name": "other"}])
        assert check_error(answer, "lora") == "the LoRA 'other' is not listed here"


# ------------------------------------------------------------------ A1111's clients


def test_a1111_s_clients_list_name_and_read_back(tmp_path: Path) -> None:
    webuiapi = pytest.importorskip("webuiapi")
    painter = Gradient(loras=("film",))
    with serving(tmp_path, painter) as server:
        api = webuiapi.WebUIApi(baseurl=f"{server.url}/sdapi/v1")
        (film,) = api.get_loras()
        assert (film["name"], film["alias"], film["path"]) == ("film", "film", "film")
        assert film["metadata"] == {
            "ss_network_dim": "4",
            "modelspec.trigger_phrase": "film style",
        }
        painter.loras = ("film", "ink")
        assert server.client.post("/sdapi/v1/refresh-loras").status_code == 200
        assert [one["name"] for one in api.get_loras()] == ["film", "ink"]

        drawn = api.txt2img(prompt="a cat <lora:film:0.8>, <lora:ink:-0.5>", seed=3, steps=4)
        assert drawn.info["prompt"] == "a cat ,"
        text = drawn.info["infotexts"][0]
        assert text.startswith("a cat , <lora:film:0.8> <lora:ink:-0.5>\nSteps: 4")
        assert f'Lora hashes: "film: {digest("film")[:10]}, ink: {digest("ink")[:10]}"' in text
        again = api.txt2img(prompt=api.png_info(drawn.image).parameters["Prompt"], seed=3, steps=4)
        assert again.image.tobytes() == drawn.image.tobytes()
        assert again.info["infotexts"] == drawn.info["infotexts"]
        plain = api.txt2img(prompt="a cat", seed=3, steps=4)
        assert plain.image.tobytes() != drawn.image.tobytes()
