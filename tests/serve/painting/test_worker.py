"""The loop: batches, fairness, cancelling, failures, memory.

Also tests `serve/jobs/board.py`, `serve/jobs/ledger.py`, `serve/jobs/pace.py`.
"""

import threading
import time
from pathlib import Path

import pytest

from opensana.drawing.picture import Picture
from opensana.errors import NumericsError, OutOfMemory
from opensana.serve.gate.keys import Keys
from opensana.serve.jobs.pace import MOST_LANES, Pace
from opensana.serve.jobs.store import Store
from opensana.serve.painting.worker import ENCODERS
from tests.serve.gradient import Gradient, Sheet, serving


def test_pictures_of_one_shape_take_their_steps_together(tmp_path: Path) -> None:
    with serving(tmp_path, Gradient(0.05)) as server:
        jobs = [server.submit(prompt=f"p{n}", steps=20 + n) for n in range(4)]
        for job in jobs:
            server.wait(job["id"])
    together = max(server.painter.batches, key=len)
    assert len(together) == 4
    assert len({step for _, step in together}) > 1, "one joined while others were at work"


def test_the_pace_forgets_lanes_that_were_not_used_for_long() -> None:
    pace = Pace()
    for lane in range(MOST_LANES + 5):
        pace.stepped(0, 1.0, 10)  # is in use
        pace.stepped(lane, 2.0, 10)
    assert pace.step(0, 10) == pytest.approx(1.0, abs=0.3)
    assert pace.step(MOST_LANES, 10) == 2.0
    assert pace.step(3, 10) != 2.0, "it is estimated"


def test_other_shapes_take_other_turns(tmp_path: Path) -> None:
    with serving(tmp_path, Gradient(0.01)) as server:
        jobs = [server.submit(width=64 * n, steps=5) for n in (1, 2, 1, 2)]
        for job in jobs:
            server.wait(job["id"])  # the painter itself asserts that a batch has one lane


def test_no_batch_is_larger_than_it_may_be(tmp_path: Path) -> None:
    with serving(tmp_path, batch=3) as server:
        server.wait(server.submit(images=8)["id"])
    assert max(map(len, server.painter.batches)) == 3


def test_pictures_that_end_together_are_encoded_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, all_at_it = Picture.png, threading.Barrier(ENCODERS)

    def patient(self: Picture) -> bytes:
        all_at_it.wait(20)
        return plain(self)

    monkeypatch.setattr(Picture, "png", patient)
    with serving(tmp_path, batch=ENCODERS) as server:
        job = server.wait(server.submit(images=ENCODERS, seed=5)["id"])
    assert [image["seed"] for image in job["images"]] == list(range(5, 5 + ENCODERS))


def test_a_picture_that_cannot_be_kept_fails_its_own_job_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, jobs, all_are_there = Store.write_picture, list[str](), threading.Event()

    def patient(what: str, sheets: list[Sheet]) -> None:
        assert what != "step" or all_are_there.wait(20)

    def full(self: Store, job: str, index: int, png: bytes) -> None:
        if job in jobs[1:2]:
            raise OSError(28, "No space left on device")
        plain(self, job, index, png)

    monkeypatch.setattr(Store, "write_picture", full)
    with serving(tmp_path, Gradient(0.01, fail=patient)) as server:
        jobs.append(server.submit(steps=3)["id"])
        server.wait(jobs[0], "running")
        jobs += [server.submit(steps=2)["id"] for _ in range(2)]  # one step behind: all end at once
        all_are_there.set()
        server.wait(jobs[1], "failed")
        for job in (jobs[0], jobs[2]):
            server.wait(job)


def test_a_running_job_is_cancelled_within_a_step(tmp_path: Path) -> None:
    with serving(tmp_path, Gradient(0.05)) as server:
        job = server.submit(prompt="long", steps=200)
        server.wait(job["id"], "running")
        other = server.submit(prompt="other", steps=8)
        assert server.post(f"/v1/jobs/{job['id']}/cancel").status_code == 202
        before = sum(any(one[0] == "long" for one in batch) for batch in server.painter.batches)
        server.wait(job["id"], "cancelled")
        server.wait(other["id"])
        after = sum(any(one[0] == "long" for one in batch) for batch in server.painter.batches)
        assert after - before <= 1
        again = server.post(f"/v1/jobs/{job['id']}/cancel")
        assert (again.status_code, again.json()["status"]) == (200, "cancelled")


def test_a_queued_job_is_cancelled_before_the_next_step(tmp_path: Path) -> None:
    with serving(tmp_path, Gradient(0.03), batch=1) as server:
        server.submit(prompt="first", steps=4)
        job = server.submit(prompt="second", steps=150)
        server.post(f"/v1/jobs/{job['id']}/cancel")
        server.wait(job["id"], "cancelled", seconds=3)
    assert not any(one[0] == "second" for batch in server.painter.batches for one in batch)


def test_a_queued_job_is_cancelled_at_once_however_long_a_step_takes(tmp_path: Path) -> None:
    with serving(tmp_path, Gradient(2.0), batch=1) as server:
        first = server.submit(prompt="first", steps=1)
        server.wait(first["id"], "running")
        job = server.submit(prompt="second")
        start = time.monotonic()
        answer = server.post(f"/v1/jobs/{job['id']}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
        assert server.job(job["id"])["status"] == "cancelled"
        assert time.monotonic() - start < 1
        server.wait(first["id"])
    assert not any(one[0] == "second" for batch in server.painter.batches for one in batch)


def test_nan_fails_its_own_job_alone_and_is_counted(tmp_path: Path) -> None:
    class Spoilt(Gradient):
        def step(self, canvases):
            outcomes = super().step(canvases)
            bad = [one.plan.request.prompt == "bad" for one in canvases]
            nan = NumericsError("the latent stopped being finite")
            return [nan if spoilt else good for spoilt, good in zip(bad, outcomes, strict=True)]

    with serving(tmp_path, Spoilt(0.01)) as server:
        bad, good = server.submit(prompt="bad"), server.submit(prompt="good")
        assert server.wait(bad["id"], "failed")["error"]["code"] == "nan"
        server.wait(good["id"])
        server.wait(server.submit(prompt="next")["id"])
        metrics = server.client.get("/metrics").text
    assert "sana_nan_total 1.0" in metrics


def test_where_memory_is_short_fewer_are_drawn_together(tmp_path: Path) -> None:
    def short(what: str, sheets: list[Sheet]) -> None:
        if what == "step" and len(sheets) > 2:
            raise OutOfMemory("there is not enough memory")

    with serving(tmp_path, Gradient(fail=short)) as server:
        done = server.wait(server.submit(images=8)["id"])
    assert any("memory was short" in note for note in done["notes"])
    assert max(map(len, server.painter.batches)) == 2


def test_a_picture_that_never_fits_fails_with_a_clear_error(tmp_path: Path) -> None:
    def never(what: str, sheets: list[Sheet]) -> None:
        if what == "step" and any(one.plan.size[0] > 64 for one in sheets):
            raise OutOfMemory("there is not enough memory for this picture; try a smaller one")

    with serving(tmp_path, Gradient(fail=never)) as server:
        error = server.wait(server.submit(width=128)["id"], "failed")["error"]
        assert error["code"] == "out_of_memory" and "smaller" in error["message"]
        server.wait(server.submit()["id"])


@pytest.mark.parametrize("when", ["open", "step", "finish"])
def test_what_nobody_expects_fails_one_job_and_tells_no_secrets(tmp_path: Path, when: str) -> None:
    def broken(what: str, sheets: list[Sheet]) -> None:
        if what == when and any(one.plan.request.prompt == "bad" for one in sheets):
            raise ValueError("/secret/path")

    with serving(tmp_path, Gradient(0.01, fail=broken)) as server:
        jobs = [server.submit(prompt=prompt) for prompt in ("good", "bad", "good")]
        error = server.wait(jobs[1]["id"], "failed")["error"]
        assert error["code"] == "failed" and "secret" not in error["message"]
        for job in (jobs[0], jobs[2]):
            server.wait(job["id"])


def test_a_short_job_does_not_wait_for_a_long_one(tmp_path: Path) -> None:
    """Of another shape: while it is drawn, the long one has at most a quarter of the turns."""
    with serving(tmp_path, Gradient(0.01)) as server:
        long = server.submit(prompt="long", width=128, steps=200, images=2)
        server.wait(long["id"], "running")
        server.wait(server.submit(prompt="short", steps=40)["id"])
        server.post(f"/v1/jobs/{long['id']}/cancel")
    turns = [batch[0][0] for batch in server.painter.batches]
    own = [number for number, prompt in enumerate(turns) if prompt == "short"]
    between = turns[own[0] : own[-1]]
    assert 0 < between.count("long") <= 40 / 4 + 1


def test_a_large_picture_is_starved_by_nobody(tmp_path: Path) -> None:
    with serving(tmp_path, Gradient(0.005), batch=2) as server:
        large = server.submit(prompt="large", width=128, steps=30)
        stop = threading.Event()

        def flood() -> None:
            while not stop.is_set():
                server.wait(server.submit(steps=3)["id"])

        threads = [threading.Thread(target=flood) for _ in range(3)]
        for thread in threads:
            thread.start()
        server.wait(large["id"], seconds=30)
        stop.set()
        for thread in threads:
            thread.join()


def test_one_key_s_many_pictures_leave_room_for_another_s(tmp_path: Path) -> None:
    keys = Keys([("ann", "a" * 16), ("bob", "b" * 16)])
    headers = {"authorization": "Bearer " + "a" * 16}
    with serving(tmp_path, Gradient(0.01), keys=keys, headers=headers, batch=2) as server:
        many = server.submit(prompt="ann", images=16, steps=100)
        server.wait(many["id"], "running")
        other = {"authorization": "Bearer " + "b" * 16}
        body = {"prompt": "bob", "steps": 10}
        id = server.client.post("/v1/jobs", json=body, headers=other).json()["id"]
        while server.client.get(f"/v1/jobs/{id}", headers=other).json()["status"] != "completed":
            time.sleep(0.01)
        server.post(f"/v1/jobs/{many['id']}/cancel")
    turns = [[prompt for prompt, _ in batch] for batch in server.painter.batches]
    own = [number for number, prompts in enumerate(turns) if "bob" in prompts]
    assert own[-1] - own[0] < 20, "bob has a place in at least every second batch"
