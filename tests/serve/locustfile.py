"""What each client of `test_load.py` does, for `locust -f`: it orders pictures and waits for them.

The environment has ORDERS, how many pictures all clients order together, and ANSWERS, a file for a
line of JSON about each answer: what was sent, its status, its seconds, its Retry-After.
"""

import itertools
import json
import os
import time

from gevent import sleep, spawn
from locust import FastHttpUser, task

ORDERS = int(os.environ["ORDERS"])
LONGEST_WAIT = 1.0
"""Seconds between two looks at a job, and after a refusal."""
orders = itertools.count()
done = itertools.count(1)
answers = open(os.environ["ANSWERS"], "w")  # noqa: SIM115 - until the process ends


class Client(FastHttpUser):
    def on_start(self) -> None:
        sleep(0)  # all clients are there before the first asks

    @task
    def order(self) -> None:
        """One picture, by a job and by OpenAI's API in turns."""
        seed = next(orders)
        if seed >= ORDERS:
            sleep(LONGEST_WAIT)
            return
        if seed % 2:
            self._accepted("POST", "/v1/images/generations", {"prompt": "x", "seed": seed}, 200)
        else:
            job = self._accepted("POST", "/v1/jobs", {"prompt": "x", "seed": seed}, 202)
            while self._ask("GET", f"/v1/jobs/{job['id']}")["status"] != "completed":
                sleep(LONGEST_WAIT / 4)
            self._ask("GET", f"/v1/jobs/{job['id']}/images/0")
        if next(done) == ORDERS:
            answers.flush()
            spawn(self.environment.runner.quit)  # which ends this client too

    def _accepted(self, method: str, path: str, body: dict, status: int) -> dict:
        """The answer once there is room."""
        while True:
            answer = self._ask(method, path, body)
            if answer.get("status_code") == status:
                return answer
            sleep(min(LONGEST_WAIT, float(answer["retry_after"])))

    def _ask(self, method: str, path: str, body: dict | None = None) -> dict:
        name = "/".join(path.split("/")[:3])
        start = time.perf_counter()
        with self.client.request(method, path, json=body, name=name, catch_response=True) as answer:
            assert answer is not None and answer.headers is not None
            seconds, retry = time.perf_counter() - start, answer.headers.get("retry-after")
            line = {"path": name, "status": answer.status_code, "seconds": seconds, "retry": retry}
            answers.write(json.dumps(line) + "\n")
            answer.success()  # what is refused is expected
            found = answer.json() if answer.headers["content-type"] == "application/json" else {}
        return found | {"status_code": answer.status_code, "retry_after": retry}
