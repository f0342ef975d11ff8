"""Queue, idempotency, rates, clients that leave, and many of them at once.

Also tests `serve/jobs/room.py`.
"""

import concurrent.futures
import json
import socket
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from opensana.serve.jobs.limits import Limits
from tests.serve.gradient import NATIVE, STEPS, Gradient, Sheet, serving

ONE = NATIVE * NATIVE * STEPS


def test_a_full_queue_says_when_to_come_again(tmp_path: Path) -> None:
    with serving(tmp_path, Gradient(0.5), limits=Limits(queue=3 * ONE)) as server:
        for _ in range(3):
            server.submit()
        start = time.monotonic()
        response = server.post("/v1/jobs", prompt="one more")
        assert time.monotonic() - start < 1, "it does not wait for a place"
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "queue_full"
        assert int(response.headers["retry-after"]) >= 1


def test_a_crowd_is_refused_before_it_is_planned(tmp_path: Path) -> None:
    planned = 0

    def slow(what: str, sheets: list[Sheet]) -> None:
        nonlocal planned
        if what == "plan":
            planned += 1
            time.sleep(0.2)

    painter, limits = Gradient(1.0, fail=slow), Limits(queue=3 * ONE)
    with serving(tmp_path, painter, limits=limits) as server:
        with concurrent.futures.ThreadPoolExecutor(20) as pool:
            answers = list(pool.map(lambda _: server.post("/v1/jobs", prompt="x"), range(20)))
        assert planned <= 4, "one was planned once more when it was begun"
    assert sorted(one.status_code for one in answers) == [202] * 3 + [503] * 17


def test_one_key_may_fill_its_own_share_alone(tmp_path: Path) -> None:
    limits = Limits(queue=9 * ONE, queue_of_key=2 * ONE)
    with serving(tmp_path, Gradient(0.05), limits=limits) as server:
        for _ in range(2):
            server.submit()
        response = server.post("/v1/jobs", prompt="one more")
        assert response.status_code == 429
        assert response.json()["error"]["code"] == "queue_full_for_key"
        assert "retry-after" in response.headers


def test_an_empty_queue_takes_what_is_larger_than_it(tmp_path: Path) -> None:
    with serving(tmp_path, limits=Limits(queue=ONE)) as server:
        server.wait(server.submit(width=256, height=256)["id"])


def test_a_key_may_send_so_many_requests_a_minute(tmp_path: Path) -> None:
    with serving(tmp_path, limits=Limits(rate=5)) as server:
        codes = [server.post("/v1/jobs", prompt="x").status_code for _ in range(8)]
        assert codes == [202] * 5 + [429] * 3
        response = server.post("/v1/jobs", prompt="x")
        assert response.json()["error"]["code"] == "rate_limited"
        assert 50 <= int(response.headers["retry-after"]) <= 60


def test_an_idempotency_key_makes_one_job(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        headers = {"idempotency-key": "once"}
        body = {"prompt": "x", "seed": None}
        first = server.client.post("/v1/jobs", json=body, headers=headers)
        again = server.client.post("/v1/jobs", json=body, headers=headers)
        assert first.json()["id"] == again.json()["id"]
        other = server.client.post("/v1/jobs", json={"prompt": "y"}, headers=headers)
        assert other.status_code == 409
        assert len(server.client.get("/v1/jobs").json()["data"]) == 1


def test_readers_that_leave_disturb_nobody(tmp_path: Path) -> None:
    with serving(tmp_path, Gradient(0.01)) as server:
        job = server.submit(steps=60)
        for _ in range(20):
            with server.client.stream("GET", f"/v1/jobs/{job['id']}/events") as stream:
                next(stream.iter_lines())
        server.wait(job["id"])


LEAVING = [
    ("/v1/images/generations", {}),
    ("/v1/images/generations", {"stream": True, "partial_images": 3}),
    ("/sdapi/v1/txt2img", {}),
]
"""A client of a job of the native API may come back, so its job goes on."""


def check_leaving(tmp_path: Path, times: int) -> None:
    """Clients that leave in the middle stop their own work, within a step, and nobody else's."""
    step = 0.1
    with serving(tmp_path, Gradient(step)) as server:
        batches = server.painter.batches

        def steps_of(prompt: str) -> int:
            return sum(one[0] == prompt for batch in batches for one in batch)

        host, port = server.url.rpartition("/")[2].split(":")
        late: list[int] = []
        good = server.submit(prompt="good", steps=20)
        for number in range(times):
            if server.job(good["id"])["status"] == "completed":
                good = server.submit(prompt="good", steps=20)
            path, more = LEAVING[number % len(LEAVING)]
            prompt = f"leaver {number}"
            body = json.dumps({"prompt": prompt, "steps": 200} | more).encode()
            head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            with socket.create_connection((host, int(port))) as client:
                client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
                end = time.monotonic() + 20
                while not steps_of(prompt):
                    assert time.monotonic() < end
                    time.sleep(0.002)
            before = steps_of(prompt)
            jobs = server.client.get("/v1/jobs?limit=3").json()["data"]
            id = next(one["id"] for one in jobs if one["request"]["prompt"] == prompt)
            server.wait(id, "cancelled", seconds=2)
            time.sleep(1.2 * step)
            late.append(steps_of(prompt) - before)
        server.wait(good["id"], seconds=30)
        figures = server.client.get("/metrics").text
        assert f'sana_jobs_total{{state="cancelled"}} {times}.0' in figures
        assert "sana_queue_depth 0.0" in figures, "their places are free"
    print(f"\nsteps after leaving: {Counter(late)}")
    assert max(late) <= 1, "the step at work is the last"


def test_work_stops_when_its_client_leaves(tmp_path: Path) -> None:
    check_leaving(tmp_path, 3)


@pytest.mark.slow
def test_work_stops_when_a_hundred_clients_leave(tmp_path: Path) -> None:
    check_leaving(tmp_path, 100)


def test_forty_clients_lose_nothing(tmp_path: Path) -> None:
    """Each that is refused comes again; `test_load.py` has more of them."""
    requests = 60
    with serving(tmp_path, Gradient(0.001), limits=Limits(queue=8 * ONE)) as server:
        tally, lock = Counter[int](), threading.Lock()
        accepted: list[str] = []

        def send(number: int) -> None:
            while True:
                response = server.post("/v1/jobs", prompt="x", seed=number)
                with lock:
                    tally[response.status_code] += 1
                    if response.status_code == 202:
                        accepted.append(response.json()["id"])
                        return
                assert int(response.headers["retry-after"]) >= 1
                time.sleep(0.02)

        with concurrent.futures.ThreadPoolExecutor(40) as pool:
            list(pool.map(send, range(requests)))
        seeds = Counter(server.wait(id)["request"]["seed"] for id in accepted)
    assert seeds == Counter(range(requests)), "none lost, none doubled"
    drawn = sum(step == STEPS - 1 for batch in server.painter.batches for _, step in batch)
    assert drawn == requests
    assert tally[503] and set(tally) == {202, 503}
