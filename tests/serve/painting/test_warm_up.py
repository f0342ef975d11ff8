"""A server is ready once it has drawn; then the first user waits for nothing that others do not."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from opensana.serve.jobs.limits import Limits
from opensana.serve.jobs.pace import Pace
from opensana.serve.painting.sana_painter import SanaPainter
from opensana.serve.painting.warm_up import PROMPT, draw_first, warm_ups
from tests import tiny
from tests.serve.gradient import NATIVE, STEPS, Gradient, Server, Sheet, serving

ORDERS = warm_ups(Gradient().about())
FIRST_PREVIEW_SECONDS = 1.0


def state(server: Server) -> tuple[int, str]:
    answer = server.client.get("/readyz")
    return answer.status_code, answer.json()["status"]


def until_ready(server: Server) -> None:
    end = time.monotonic() + 20
    while state(server) != (200, "ready"):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_server_is_ready_once_it_has_drawn(tmp_path: Path) -> None:
    held = threading.Event()

    def wait(what: str, sheets: list[Sheet]) -> None:
        if what == "step":
            assert held.wait(20)

    with serving(tmp_path, Gradient(fail=wait), warm_ups=ORDERS) as server:
        assert state(server) == (503, "warming_up")
        held.set()
        until_ready(server)
        server.wait(server.submit(prompt="mine")["id"])
        assert len(server.client.get("/v1/jobs").json()["data"]) == 1
    assert [batch[0][0] for batch in server.painter.batches] == [PROMPT] * 2 + ["mine"] * STEPS


def test_a_job_does_not_wait_for_the_warm_up(tmp_path: Path) -> None:
    """Its picture makes the server ready as well; one that is cancelled does not."""
    at_work, go = threading.Event(), threading.Semaphore(0)

    def wait(what: str, sheets: list[Sheet]) -> None:
        if what == "step":
            at_work.set()
            assert go.acquire(timeout=20)

    with serving(tmp_path, Gradient(fail=wait), warm_ups=ORDERS) as server:
        assert at_work.wait(20)
        cancelled = server.submit(prompt="cancelled")
        go.release(2)  # of the warm-up, then of the job
        server.wait(cancelled["id"], "running")
        server.post(f"/v1/jobs/{cancelled['id']}/cancel")
        go.release()
        server.wait(cancelled["id"], "cancelled")
        assert state(server) == (503, "warming_up")
        job = server.submit(prompt="mine")
        go.release(100)
        server.wait(job["id"])
        assert state(server) == (200, "ready")
    prompts = [batch[0][0] for batch in server.painter.batches]
    assert prompts.count(PROMPT) <= 2 and prompts[-STEPS:] == ["mine"] * STEPS


def test_forecasts_before_the_first_job_are_measured(tmp_path: Path) -> None:
    limits = Limits(queue=NATIVE * NATIVE * STEPS)
    with serving(tmp_path, Gradient(0.1), warm_ups=ORDERS, limits=limits) as server:
        until_ready(server)
        server.submit(steps=100)
        refused = server.post("/v1/jobs", prompt="one more", steps=STEPS)
        assert refused.status_code == 503
        assert 9 <= int(refused.headers["retry-after"]) <= 15, "of 100 steps, each of 0.1 s"


def test_a_model_that_cannot_draw_is_not_ready_until_it_can(tmp_path: Path) -> None:
    def broken(what: str, sheets: list[Sheet]) -> None:
        if what == "finish" and sheets[0].plan.request.prompt == PROMPT:
            raise ValueError("broken")

    with serving(tmp_path, Gradient(fail=broken), warm_ups=ORDERS) as server:
        end = time.monotonic() + 20
        while state(server) == (503, "warming_up"):
            assert time.monotonic() < end
        assert state(server) == (503, "failed")
        server.wait(server.submit(prompt="another")["id"])
        assert state(server) == (200, "ready")


def test_a_warm_up_ends_with_its_server() -> None:
    painter = Gradient()
    draw_first(painter, ORDERS, Pace(), lambda: len(painter.batches) == 1)
    assert len(painter.batches) == 1


def test_every_network_of_a_model_is_warmed_up() -> None:
    for sana in (tiny.sana(instruction="none"), tiny.sprint(instruction="none")):
        painter = SanaPainter(sana)
        (order,) = warm_ups(painter.about())
        plan = painter.plan(order)
        assert (plan.size, plan.steps) == ((64, 64), 2)
        assert plan.request.solver == painter.about()["defaults"]["solver"]
    about = Gradient().about() | {"few_step": {"steps": [1, 2, 3, 4]}, "modes": ["control"]}
    plain, few = warm_ups(about)
    assert (plain.request.solver, few.request.solver) == ("euler", "scm")
    assert plain.control_image is not None


@contextmanager
def real_server(folder: Path) -> Iterator[tuple[httpx2.Client, list[str]]]:
    """`opensana serve` with emoji-256, ready, and the lines that it wrote."""
    command = [sys.executable, "-m", "opensana.cli", "serve", "--port", "0", "--folder", folder]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ) as running:
        assert running.stderr is not None
        lines = list[str]()
        try:
            for line in running.stderr:
                lines.append(line)
                if '"ready"' in line:
                    break
            else:
                pytest.fail("".join(lines))
            url = re.search(r"http://[\d.]+:\d+", "".join(lines))
            assert url is not None
            with httpx2.Client(base_url=url[0], timeout=60) as client:
                yield client, lines
        finally:
            running.terminate()


@pytest.mark.slow
def test_the_first_preview_of_all_comes_within_a_second(tmp_path: Path) -> None:
    body = {"prompt": "a blue whale", "stream": True, "partial_images": 1}
    with real_server(tmp_path) as (client, lines):
        assert client.get("/readyz").status_code == 200
        start = time.monotonic()
        with client.stream("POST", "/v1/images/generations", json=body) as stream:
            first = next(line for line in stream.iter_lines() if line.startswith("data:"))
        seconds = time.monotonic() - start
    assert json.loads(first.removeprefix("data:"))["type"] == "image_generation.partial_image"
    warm_up = json.loads(lines[-1])["warm_up"]
    print(f"warm-up {warm_up:.2f} s, first preview after {seconds:.2f} s")
    assert seconds < FIRST_PREVIEW_SECONDS
