"""Queue, idempotency, rates, clients that leave, and many of them at once.

Also tests `serve/room.py`.
"""

import concurrent.futures
import threading
import time
from collections import Counter
from pathlib import Path

import httpx2
import pytest

from opensana.serve.limits import Limits
from tests.serve.gradient import NATIVE, STEPS, Gradient, serving

ONE = NATIVE * NATIVE * STEPS


def test_a_full_queue_says_when_to_come_again(tmp_path: Path) -> None:
    with serving(tmp_path, Gradient(0.05), limits=Limits(queue=3 * ONE)) as server:
        for _ in range(3):
            server.submit()
        start = time.monotonic()
        response = server.post("/v1/jobs", prompt="one more")
        assert time.monotonic() - start < 0.1
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "queue_full"
        assert int(response.headers["retry-after"]) >= 1


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
        assert 1 <= int(response.headers["retry-after"]) <= 12


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


def load(tmp_path: Path, clients: int, requests: int) -> Counter[str]:
    """Send requests from as many clients; each that is refused comes again; by answer."""
    limits = Limits(queue=64 * ONE)
    with serving(tmp_path, Gradient(0.001), limits=limits) as server:
        tally, lock = Counter[str](), threading.Lock()
        accepted: list[str] = []

        def send(number: int) -> None:
            with httpx2.Client(base_url=server.url, timeout=60) as client:
                while True:
                    response = client.post("/v1/jobs", json={"prompt": "x", "seed": number})
                    with lock:
                        tally[str(response.status_code)] += 1
                    if response.status_code == 202:
                        with lock:
                            accepted.append(response.json()["id"])
                        return
                    assert response.status_code in (429, 503) and response.headers["retry-after"]
                    time.sleep(0.02)

        with concurrent.futures.ThreadPoolExecutor(clients) as pool:
            list(pool.map(send, range(requests)))
        assert len(set(accepted)) == requests
        seeds = Counter[int]()
        for id in accepted:
            seeds[server.wait(id, seconds=60)["request"]["seed"]] += 1
            image = server.client.get(f"/v1/jobs/{id}/images/0")
            assert image.status_code == 200
        assert seeds == Counter(range(requests)), "none lost, none doubled"
        drawn = sum(step == STEPS - 1 for batch in server.painter.batches for _, step in batch)
        assert drawn == requests
        return tally


def test_forty_clients_lose_nothing(tmp_path: Path) -> None:
    tally = load(tmp_path, 40, 120)
    assert set(tally) <= {"202", "429", "503"}


@pytest.mark.slow
def test_two_hundred_clients_and_a_thousand_requests_lose_nothing(tmp_path: Path) -> None:
    tally = load(tmp_path, 200, 1000)
    assert set(tally) <= {"202", "429", "503"}
    assert tally["503"], "the queue was full"
