"""A server that is stopped, killed and begun again.

Also tests `serve/beginnings.py`, `serve/store.py`.
"""

import concurrent.futures
import io
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image

from opensana.errors import ConfigError
from opensana.serve import run
from opensana.serve.store import Store
from tests.serve.gradient import Gradient, serving

ROOT = Path(__file__).resolve().parent.parent.parent


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


@contextmanager
def process(
    folder: Path, *, step: float, grace: float = 20, port: int | None = None
) -> Iterator[tuple[subprocess.Popen[bytes], httpx2.Client]]:
    """A server over a painter of gradients, on a free port unless one is given."""
    port = free_port() if port is None else port
    words = [str(folder), str(port), str(step), str(grace)]
    command = [sys.executable, "-m", "tests.serve.painted_server", *words]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) as running:
        try:
            with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
                _until(lambda: _answers(client), running)
                yield running, client
        finally:
            running.kill()


def _answers(client: httpx2.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx2.TransportError:
        return False


def _until(true: Any, running: subprocess.Popen[bytes] | None = None) -> None:
    end = time.monotonic() + 60
    while not true():
        assert running is None or running.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)


def submit(client: httpx2.Client, **body: Any) -> str:
    response = client.post("/v1/jobs", json={"prompt": "x"} | body)
    assert response.status_code == 202, response.text
    return response.json()["id"]


def states(client: httpx2.Client) -> dict[str, str]:
    return {one["id"]: one["status"] for one in client.get("/v1/jobs?limit=200").json()["data"]}


def test_no_job_is_lost_when_the_server_is_killed(tmp_path: Path) -> None:
    with process(tmp_path, step=0.02) as (running, client):
        ids = [submit(client, seed=seed, steps=6) for seed in range(20)]
        _until(lambda: "completed" in states(client).values())
        running.send_signal(signal.SIGKILL)
        running.wait()
    assert not list(tmp_path.rglob("*.partial*"))
    with serving(tmp_path) as server:
        for seed, id in enumerate(ids):
            done = server.wait(id)
            assert [one["seed"] for one in done["images"]] == [seed]
            png = server.client.get(f"/v1/jobs/{id}/images/0").content
            assert Image.open(io.BytesIO(png)).size == (64, 64)


def test_a_job_that_kills_its_server_again_and_again_is_given_up(tmp_path: Path) -> None:
    for _ in range(3):
        with process(tmp_path, step=0.2) as (running, client):
            if not states(client):
                submit(client, steps=100)
            _until(lambda: "running" in states(client).values())
            running.send_signal(signal.SIGKILL)
            running.wait()
    with serving(tmp_path) as server:
        (job,) = server.client.get("/v1/jobs").json()["data"]
    assert (job["status"], job["error"]["code"]) == ("failed", "interrupted")


def test_sigterm_lets_the_pictures_at_work_finish(tmp_path: Path) -> None:
    with process(tmp_path, step=0.05) as (running, client):
        first = [submit(client, steps=20) for _ in range(2)]
        _until(lambda: set(states(client).values()) == {"running"})
        later = [submit(client, steps=20) for _ in range(3)]
        running.send_signal(signal.SIGTERM)
        _until(lambda: client.get("/readyz").status_code == 503)
        refused = client.post("/v1/jobs", json={"prompt": "x"})
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "draining"
        assert running.wait(20) == 0
    with serving(tmp_path) as server:
        for id in first:
            assert server.job(id)["status"] == "completed"
        for id in later:
            server.wait(id)


def test_sigterm_waits_no_longer_than_its_grace(tmp_path: Path) -> None:
    with process(tmp_path, step=0.05, grace=0.5) as (running, client):
        id = submit(client, steps=200)
        _until(lambda: states(client)[id] == "running")
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            events = pool.submit(lambda: client.get(f"/v1/jobs/{id}/events").text)
            running.send_signal(signal.SIGTERM)
            assert running.wait(15) == 0
            assert "event: job" in events.result()
    with serving(tmp_path) as server:
        server.wait(id)


def test_two_servers_do_not_share_a_folder(tmp_path: Path) -> None:
    with serving(tmp_path), pytest.raises(ConfigError, match="--folder"):
        Store(tmp_path)


def test_a_port_that_is_taken_is_said(tmp_path: Path) -> None:
    with serving(tmp_path, Gradient()) as server:
        port = int(server.url.rpartition(":")[2])
        with pytest.raises(ConfigError, match="--port"):
            run.bind("127.0.0.1", port)


def test_old_jobs_and_those_beyond_the_size_go(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        ids = [server.submit()["id"] for _ in range(4)]
        for id in ids:
            server.wait(id)
    store = Store(tmp_path)
    record = store.get(ids[-1])
    assert record is not None
    size = len(store.picture(ids[-1], 0) or b"")
    assert store.prune(before=0, most_bytes=2 * size + size // 2) == 2
    assert len(store.of_key("local", 10, None)) == 2
    assert store.prune(before=time.time() + 1, most_bytes=10**9) == 2
    assert not list((tmp_path / "jobs").iterdir())
    store.close()
