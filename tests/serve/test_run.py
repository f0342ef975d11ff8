"""A server that is stopped, killed and begun again.

Also tests `serve/jobs/beginnings.py`, `serve/jobs/store.py`.
"""

import concurrent.futures
import io
import signal
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image

from opensana.errors import ConfigError
from opensana.serve import run
from opensana.serve.jobs.store import Store
from tests.serve.gradient import Gradient, serving
from tests.serve.processes import running, until


def submit(client: httpx2.Client, **body: Any) -> str:
    response = client.post("/v1/jobs", json={"prompt": "x"} | body)
    assert response.status_code == 202, response.text
    return response.json()["id"]


def states(client: httpx2.Client) -> dict[str, str]:
    return {one["id"]: one["status"] for one in client.get("/v1/jobs?limit=200").json()["data"]}


def test_no_job_is_lost_when_the_server_is_killed(tmp_path: Path) -> None:
    with running(tmp_path / "jobs", step=0.02, batch=2) as server:
        ids = [submit(server.client, seed=seed, steps=6) for seed in range(20)]
        until(lambda: "completed" in states(server.client).values())
        server.process.kill()
        server.process.wait()
    # As if it had been killed while it wrote; now and then it was.
    last = tmp_path / "jobs" / "jobs" / ids[-1]
    last.mkdir(exist_ok=True)
    (last / ".0a1b2c3d.partial").write_bytes(b"half a pict")
    with serving(tmp_path / "jobs") as server:
        for seed, id in enumerate(ids):
            done = server.wait(id)
            assert [one["seed"] for one in done["images"]] == [seed]
            png = server.client.get(f"/v1/jobs/{id}/images/0").content
            assert Image.open(io.BytesIO(png)).size == (64, 64)
        assert not list(tmp_path.rglob("*.partial*"))


def test_a_job_that_ends_its_server_again_and_again_is_given_up(tmp_path: Path) -> None:
    id = None
    for _ in range(3):
        with serving(tmp_path, Gradient(0.05)) as server:  # what is at work stays so on disk
            id = id or server.submit(steps=100)["id"]
            server.wait(id, "running")
    with serving(tmp_path) as server:
        (job,) = server.client.get("/v1/jobs").json()["data"]
    assert (job["status"], job["error"]["code"]) == ("failed", "interrupted")


def test_sigterm_lets_the_pictures_at_work_finish(tmp_path: Path) -> None:
    with running(tmp_path / "jobs", step=0.05, batch=2) as server:
        client = server.client
        first = [submit(client, steps=20) for _ in range(2)]
        until(lambda: set(states(client).values()) == {"running"})
        later = [submit(client, steps=20) for _ in range(3)]
        server.process.send_signal(signal.SIGTERM)
        until(lambda: client.get("/readyz").status_code == 503)
        refused = client.post("/v1/jobs", json={"prompt": "x"})
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "draining"
        assert server.process.wait(20) == 0
    with serving(tmp_path / "jobs") as server:
        for id in first:
            assert server.job(id)["status"] == "completed"
        for id in later:
            server.wait(id)


def test_sigterm_waits_no_longer_than_its_grace(tmp_path: Path) -> None:
    with running(tmp_path / "jobs", step=0.05, grace=0.5, batch=2) as server:
        client = server.client
        id = submit(client, steps=200)
        until(lambda: states(client)[id] == "running")
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            events = pool.submit(lambda: client.get(f"/v1/jobs/{id}/events").text)
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(15) == 0
            assert "event: job" in events.result()
    with serving(tmp_path / "jobs") as server:
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
