"""Replicas draw what a worker would: on stand-ins, in this process.

Also tests `serve/jobs/relay.py`, `serve/replicas/replica.py`.
"""

import base64
import io
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from opensana.errors import NumericsError, OpensanaError, OutOfMemory, RequestError
from opensana.serve.gate.keys import Keys
from opensana.serve.painting.warm_up import PROMPT
from opensana.serve.replicas.replica import Replica
from tests.serve.gradient import Gradient, Server, Sheet, gradient, serving
from tests.serve.standing import Standing


@contextmanager
def spread(folder: Path, replicas: Standing, **options: Any) -> Iterator[Server]:
    standing: Any = replicas
    with serving(folder, standing, **options) as server:
        yield server


def drawn_by(painter: Gradient) -> list[str]:
    """The prompts of its steps, without the warm-up's."""
    prompts = [prompt for batch in painter.batches for prompt, _ in batch]
    return [prompt for prompt in prompts if prompt != PROMPT]


def test_both_draw_and_the_pixels_are_those_of_one(tmp_path: Path) -> None:
    replicas = Standing(make=partial(Gradient, 0.02))
    with spread(tmp_path, replicas) as server:
        jobs = [server.submit(seed=seed, steps=10) for seed in range(8)]
        for seed, job in enumerate(jobs):
            done = server.wait(job["id"])
            assert [one["seed"] for one in done["images"]] == [seed]
            png = server.client.get(f"/v1/jobs/{job['id']}/images/0").content
            picture = Image.open(io.BytesIO(png))
            assert picture.tobytes() == gradient(64, 64, seed, 10).tobytes()
            assert json.loads(picture.info["opensana"])["request"]["seed"] == seed
        metrics = server.client.get("/metrics").text
    steps = [len(drawn_by(one)) for one in replicas.painters]
    assert sum(steps) == 80 and min(steps) >= 20
    assert max(len(batch) for one in replicas.painters for batch in one.batches) == 2
    assert "sana_images_total 8.0" in metrics and "sana_painters 2.0" in metrics
    turns = sum(len(one.batches) for one in replicas.painters) - 2 * 2  # of the warm-ups
    assert f"sana_step_seconds_count {turns:.1f}" in metrics
    assert "sana_batch_size_sum 80.0" in metrics


def test_the_pictures_of_one_job_are_drawn_side_by_side(tmp_path: Path) -> None:
    replicas = Standing(make=partial(Gradient, 0.01))
    with spread(tmp_path, replicas) as server:
        done = server.wait(server.submit(images=6, seed=5)["id"])
    assert [one["seed"] for one in done["images"]] == list(range(5, 11))
    assert all(drawn_by(one) for one in replicas.painters)


def test_events_and_previews_come_from_replicas(tmp_path: Path) -> None:
    with spread(tmp_path, Standing(make=partial(Gradient, 0.05))) as server:
        job = server.submit(steps=6)
        url = f"/v1/jobs/{job['id']}/events?previews=true"
        with server.client.stream("GET", url) as stream:
            lines = [line for line in stream.iter_lines() if line.startswith("data: ")]
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    kinds = Counter(event["type"] for event in events)
    assert kinds["step"] >= 4 and kinds["preview"] >= 4 and kinds["image"] == 1
    assert events[-1]["type"] == "completed"
    preview = next(event for event in events if event["type"] == "preview")
    image = Image.open(io.BytesIO(base64.b64decode(preview["b64_json"])))
    assert image.getpixel((0, 0)) == (preview["step"] * 20, 0, 0)


def test_a_cancelled_picture_is_drawn_no_further(tmp_path: Path) -> None:
    replicas = Standing(1, partial(Gradient, 0.05))
    with spread(tmp_path, replicas) as server:
        job = server.submit(prompt="long", steps=200)
        server.wait(job["id"], "running")
        server.post(f"/v1/jobs/{job['id']}/cancel")
        before = len(drawn_by(replicas.painters[0]))
        server.wait(job["id"], "cancelled", seconds=1)
        server.wait(server.submit(prompt="next", steps=10)["id"])
    assert drawn_by(replicas.painters[0]).count("long") - before <= 2


def test_a_queued_job_is_cancelled_before_any_replica_has_it(tmp_path: Path) -> None:
    replicas = Standing(1, partial(Gradient, 0.02))
    with spread(tmp_path, replicas) as server:
        many = [server.submit(steps=100) for _ in range(replicas.room)]
        job = server.submit(prompt="late")
        server.post(f"/v1/jobs/{job['id']}/cancel")
        server.wait(job["id"], "cancelled", seconds=1)
        for one in many:
            server.post(f"/v1/jobs/{one['id']}/cancel")
    assert "late" not in drawn_by(replicas.painters[0])


def test_a_killed_replica_s_pictures_are_drawn_by_others_once(tmp_path: Path) -> None:
    replicas = Standing(make=partial(Gradient, 0.01))
    with spread(tmp_path, replicas) as server:
        ids = [server.submit(seed=seed, steps=20)["id"] for seed in range(16)]
        while not drawn_by(replicas.painters[0]):
            time.sleep(0.005)
        replicas.kill(0)
        jobs = [server.wait(id) for id in ids]
        metrics = server.client.get("/metrics").text
        for seed, id in enumerate(ids):
            png = server.client.get(f"/v1/jobs/{id}/images/0").content
            same = gradient(64, 64, seed, 20).tobytes()
            assert Image.open(io.BytesIO(png)).tobytes() == same
    moved = [job for job in jobs if any("drawn again" in note for note in job["notes"])]
    assert 1 <= len(moved) <= replicas.room
    assert (
        "sana_images_total 16.0" in metrics and 'sana_jobs_total{state="completed"} 16.0' in metrics
    )
    assert drawn_by(replicas.painters[2]), "a new replica took its place"


def test_a_picture_that_kills_replicas_is_given_up_and_others_are_not(tmp_path: Path) -> None:
    class Poisoned(Gradient):
        def step(self, canvases):
            if any(one.plan.request.prompt == "poison" for one in canvases):
                (number,) = (n for n, one in enumerate(replicas.painters) if one is self)
                if number in replicas.alive:
                    replicas.kill(number)
            return super().step(canvases)

    replicas = Standing(make=partial(Poisoned, 0.01))
    with spread(tmp_path, replicas) as server:
        bad = server.submit(prompt="poison", steps=30)
        good = [server.submit(prompt="good", steps=30) for _ in range(6)]
        error = server.wait(bad["id"], "failed")["error"]
        assert error["code"] == "interrupted" and "3 replicas" in error["message"]
        for job in good:
            server.wait(job["id"])
    assert len(replicas.painters) == 2 + 3


def test_full_replicas_are_asked_again(tmp_path: Path) -> None:
    replicas = Standing(make=partial(Gradient, 0.005))
    with spread(tmp_path, replicas) as server:
        server.wait(server.submit()["id"])
        replicas._busy.update({0: 100, 1: 100})
        job = server.submit()
        time.sleep(0.2)
        assert server.job(job["id"])["status"] == "queued"
        replicas._busy.clear()
        server.wait(job["id"])


def test_without_a_replica_the_server_is_not_ready(tmp_path: Path) -> None:
    replicas = Standing(1)
    with spread(tmp_path, replicas) as server:
        assert server.client.get("/readyz").status_code == 200
        (number,) = replicas.alive
        gone = replicas.alive.pop(number)
        assert server.client.get("/readyz").json() == {"status": "loading"}
        refused = server.post("/v1/jobs", prompt="x")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
        assert "retry-after" in refused.headers
        replicas.alive[number] = gone
        assert server.client.get("/readyz").status_code == 200
        server.wait(server.submit()["id"])


def test_what_goes_wrong_in_a_replica_fails_its_job_alone(tmp_path: Path) -> None:
    class Spoilt(Gradient):
        def step(self, canvases):
            outcomes = super().step(canvases)
            bad = [one.plan.request.prompt == "bad" for one in canvases]
            nan = NumericsError("the latent stopped being finite")
            return [nan if spoilt else good for spoilt, good in zip(bad, outcomes, strict=True)]

    with spread(tmp_path, Standing(make=lambda: Spoilt(0.01))) as server:
        bad, good = server.submit(prompt="bad", images=3), server.submit(prompt="good")
        assert server.wait(bad["id"], "failed")["error"]["code"] == "nan"
        server.wait(good["id"])
        assert "sana_nan_total 1.0" in server.client.get("/metrics").text


def test_memory_that_is_short_in_a_replica_is_noted(tmp_path: Path) -> None:
    def short(what: str, sheets: list[Sheet]) -> None:
        if what == "step" and len(sheets) > 1:
            raise OutOfMemory("there is not enough memory")

    with spread(tmp_path, Standing(1, lambda: Gradient(0.01, fail=short))) as server:
        done = server.wait(server.submit(images=4)["id"])
    assert any("memory was short" in note for note in done["notes"])


def test_what_cannot_be_planned_is_refused(tmp_path: Path) -> None:
    def odd(what: str, sheets: list[Sheet]) -> None:
        if what == "plan" and ready.is_set():
            raise RequestError("this cannot be drawn; try another")

    ready = threading.Event()
    with spread(tmp_path, Standing(make=lambda: Gradient(fail=odd))) as server:
        ready.set()
        refused = server.post("/v1/jobs", prompt="x")
    assert refused.status_code == 400
    assert refused.json()["error"]["message"] == "this cannot be drawn; try another"


def test_keys_share_the_replicas(tmp_path: Path) -> None:
    keys = Keys([("ann", "a" * 16), ("bob", "b" * 16)])
    ann, bob = ({"authorization": "Bearer " + letter * 16} for letter in "ab")
    replicas = Standing(1, partial(Gradient, 0.005))
    with spread(tmp_path, replicas, keys=keys, headers=ann) as server:
        many = server.submit(prompt="ann", images=16, steps=30)
        server.wait(many["id"], "running")
        body = {"prompt": "bob", "steps": 30}
        assert server.client.post("/v1/jobs", json=body, headers=bob).status_code == 202
        server.wait(many["id"], seconds=60)
    last = [
        prompt for batch in replicas.painters[0].batches for prompt, step in batch if step == 29
    ]
    assert last.count("ann") == 16
    assert last.index("bob") <= 10, "bob did not wait for all of ann's"


def held_by(event: threading.Event) -> Gradient:
    """It takes no step before an event, but for the warm-up."""

    def wait(what: str, sheets: list[Sheet]) -> None:
        if what == "step" and sheets[0].plan.request.prompt != PROMPT:
            assert event.wait(60)

    return Gradient(fail=wait)


def test_what_replicas_have_is_finished_and_the_rest_left(tmp_path: Path) -> None:
    event = threading.Event()
    replicas = Standing(1, partial(held_by, event))
    with spread(tmp_path, replicas) as server:
        first = server.submit()
        server.wait(first["id"], "running")
        rest = [server.submit()["id"] for _ in range(7)]
        while sum(replicas._busy.values()) < replicas.room:
            time.sleep(0.005)
        server.service.drain()
        assert server.client.get("/readyz").json() == {"status": "draining"}
        event.set()
        server.wait(first["id"])
        while sum(replicas._busy.values()):
            time.sleep(0.005)
        left = [id for id in rest if server.job(id)["status"] == "queued"]
    assert len(left) == 8 - replicas.room
    with spread(tmp_path, Standing(1)) as server:
        for id in left:
            server.wait(id)


def test_a_picture_that_waits_in_a_replica_is_forgotten_once_it_is_cancelled(
    tmp_path: Path,
) -> None:
    event = threading.Event()
    replicas = Standing(1, partial(held_by, event), batch=1)
    with spread(tmp_path, replicas) as server:
        first = server.submit()
        server.wait(first["id"], "running")
        other = server.submit()
        board = replicas.alive[0]._board
        while len(board.all()) < 2:
            time.sleep(0.005)
        server.post(f"/v1/jobs/{other['id']}/cancel")
        server.wait(other["id"], "cancelled")
        end = time.monotonic() + 10
        while len(board.all()) > 1:
            assert time.monotonic() < end
            time.sleep(0.005)
        event.set()
        server.wait(first["id"])


def test_a_model_that_cannot_draw_is_no_replica() -> None:
    def broken(what: str, sheets: list[Sheet]) -> None:
        if what == "step":
            raise ValueError("broken")

    with pytest.raises(OpensanaError, match="cannot draw"):
        Replica(lambda: Gradient(fail=broken), 2)
