"""The API of its own, over a painter of gradients.

Also tests `serve/app.py`, `serve/board.py`, `serve/errors.py`, `serve/events.py`, `serve/guard.py`,
`serve/health.py`, `serve/job.py`, `serve/keys.py`, `serve/limits.py`, `serve/logs.py`,
`serve/metrics.py`, `serve/order.py`, `serve/pace.py`, `serve/run.py`,
`serve/beginnings.py`, `serve/schedule.py`,
`serve/service.py`, `serve/store.py`, `serve/worker.py`, `cli/serve.py`.
"""

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from tests.serve.gradient import Server, gradient, serving


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path) as found:
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
