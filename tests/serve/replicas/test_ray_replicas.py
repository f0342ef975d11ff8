"""Replicas on a real Ray of this machine, one of which is killed under load.

Also tests `serve/painting/loading.py`.
"""

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image

from opensana.cli import main
from opensana.errors import ConfigError
from opensana.models.options import LoadOptions
from opensana.serve.painting.loading import whole_paths
from opensana.serve.replicas import ray_replicas
from opensana.serve.replicas.ray_replicas import Scale, read_scale
from tests.serve.gradient import gradient, serving

ROOT = Path(__file__).resolve().parents[3]
STARTING = 240.0  # on a machine that has other things to do; Ray itself takes 10 seconds


@dataclass
class Head:
    process: subprocess.Popen[bytes]
    client: httpx2.Client

    def submit(self, **body: Any) -> str:
        response = self.client.post("/v1/jobs", json={"prompt": "x"} | body)
        assert response.status_code == 202, response.text
        return response.json()["id"]

    def states(self) -> dict[str, str]:
        jobs = self.client.get("/v1/jobs?limit=200").json()["data"]
        return {one["id"]: one["status"] for one in jobs}

    def until(self, true: Callable[[], bool], seconds: float = 60.0) -> None:
        end = time.monotonic() + seconds
        while not true():
            assert self.process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)

    def wait(self, ids: list[str]) -> None:
        """Until all are completed."""
        self.until(lambda: {self.states()[id] for id in ids} == {"completed"})

    def figure(self, name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (.+)$", self.client.get("/metrics").text, re.M)
        return float(found[1]) if found else 0.0

    def picture(self, id: str) -> Image.Image:
        return Image.open(io.BytesIO(self.client.get(f"/v1/jobs/{id}/images/0").content))

    def painter_of(self, id: str) -> int:
        """The process that drew a job."""
        return int(json.loads(self.picture(id).info["opensana"])["model"])


@contextmanager
def running(folder: Path, *, step: float, replicas: str) -> Iterator[Head]:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    words = [str(folder), str(port), str(step), replicas, "local"]
    command = [sys.executable, "-m", "tests.serve.painted_cluster", *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with (
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as process,
        httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
    ):
        head = Head(process, client)
        try:
            head.until(lambda: answers(client), STARTING)
            head.until(lambda: head.figure("sana_painters") == read_scale(replicas).least)
            yield head
        finally:
            process.terminate()
            process.wait(60)


def answers(client: httpx2.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx2.TransportError:
        return False


def descendants(process: int) -> list[int]:
    """The processes that it began, and those that these began."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has just ended
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(") ")[2].split()[1])
    found = [process]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


def lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False


def until_gone(processes: list[int]) -> None:
    end = time.monotonic() + 30
    while any(map(lives, processes)):
        assert time.monotonic() < end
        time.sleep(0.1)


def command(process: int) -> bytes:
    return Path(f"/proc/{process}/cmdline").read_bytes()


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    pytest.importorskip("ray.serve")
    with running(tmp_path_factory.mktemp("jobs"), step=0.05, replicas="2") as found:
        yield found


@pytest.mark.slow
def test_both_replicas_draw_and_the_pixels_are_those_without_ray(head: Head) -> None:
    before = head.figure("sana_step_seconds_count")
    ids = [head.submit(seed=seed, steps=10) for seed in range(8)]
    head.wait(ids)
    for seed, id in enumerate(ids):
        assert head.picture(id).tobytes() == gradient(64, 64, seed, 10).tobytes()
    assert len({head.painter_of(id) for id in ids}) == 2
    turns = head.figure("sana_step_seconds_count") - before
    assert turns < 80, "pictures of one replica took steps together"
    assert head.figure("sana_batch_size_sum") >= 80


@pytest.mark.slow
def test_steps_and_previews_come_as_they_are_drawn(head: Head) -> None:
    id = head.submit(steps=12)
    with head.client.stream("GET", f"/v1/jobs/{id}/events?previews=true") as stream:
        kinds = [line[7:] for line in stream.iter_lines() if line.startswith("event: ")]
    assert kinds.count("step") >= 8 and kinds.count("preview") >= 8
    assert kinds[-2:] == ["image", "completed"]


@pytest.mark.slow
def test_a_picture_on_ray_is_cancelled_within_a_step(head: Head) -> None:
    id = head.submit(steps=200)
    head.until(lambda: head.states()[id] == "running")
    head.client.post(f"/v1/jobs/{id}/cancel")
    head.until(lambda: head.states()[id] == "cancelled", 1.0)
    turns = head.figure("sana_step_seconds_count")
    time.sleep(0.5)
    assert head.figure("sana_step_seconds_count") == turns, "nobody draws it any more"


@pytest.mark.slow
def test_a_replica_killed_under_load_loses_nothing(head: Head) -> None:
    first = head.submit(seed=1)
    head.wait([first])
    images = head.figure("sana_images_total")
    ids = [head.submit(seed=seed, steps=15) for seed in range(40)]
    head.until(lambda: "completed" in {head.states()[id] for id in ids})
    killed = head.painter_of(first)
    os.kill(killed, signal.SIGKILL)
    head.wait(ids)
    assert answers(head.client), "the server stayed"
    for seed, id in enumerate(ids):
        assert head.picture(id).tobytes() == gradient(64, 64, seed, 15).tobytes()
    assert head.figure("sana_images_total") - images == 40, "none is drawn twice"
    jobs = [head.client.get(f"/v1/jobs/{id}").json() for id in ids]
    assert any("drawn again" in note for job in jobs for note in job["notes"])
    head.until(lambda: head.figure("sana_painters") == 2)
    more = [head.submit(seed=seed) for seed in range(12)]
    head.wait(more)
    assert len({head.painter_of(id) for id in more} - {killed}) == 2, "a new one took its place"


@pytest.mark.slow
def test_sigterm_finishes_what_is_at_work_and_leaves_no_process(head: Head) -> None:
    ids = [head.submit(steps=30) for _ in range(2)]
    head.until(lambda: {head.states()[id] for id in ids} == {"running"})
    begun = descendants(head.process.pid)
    assert len(begun) >= 5
    head.process.send_signal(signal.SIGTERM)
    while answers(head.client):
        time.sleep(0.05)
    assert head.process.wait(60) == 0
    until_gone(begun)


@pytest.mark.slow
def test_a_killed_server_leaves_no_replica_and_no_job_undone(tmp_path: Path) -> None:
    """Agents of Ray, which draw nothing, end by themselves within about a minute."""
    pytest.importorskip("ray.serve")
    with running(tmp_path, step=0.05, replicas="2") as head:
        ids = [head.submit(seed=seed, steps=10) for seed in range(12)]
        head.until(lambda: "completed" in head.states().values())
        begun = [one for one in descendants(head.process.pid) if b"Agent" not in command(one)]
        assert sum(b"painter" in command(one) for one in begun) == 2
        head.process.kill()
        head.process.wait()
    until_gone(begun)
    with serving(tmp_path) as server:
        for id in ids:
            server.wait(id)


@pytest.mark.slow
def test_ray_adds_a_replica_where_pictures_wait_and_takes_it_away(tmp_path: Path) -> None:
    pytest.importorskip("ray.serve")
    with running(tmp_path, step=0.1, replicas="1..2") as head:
        ids = [head.submit(steps=100) for _ in range(16)]
        head.until(lambda: head.figure("sana_painters") == 2, 90)
        for id in ids:
            head.client.post(f"/v1/jobs/{id}/cancel")
        head.until(lambda: head.figure("sana_painters") == 1, 90)
        head.wait([head.submit()])


@pytest.mark.parametrize(
    ("text", "scale"), [("2", Scale(2, 2)), ("1..4", Scale(1, 4)), ("3..3", Scale(3, 3))]
)
def test_replicas_are_a_number_or_a_range(text: str, scale: Scale) -> None:
    assert read_scale(text) == scale


@pytest.mark.parametrize("text", ["", "0", "4..1", "..", "1..", "..3", "two", "-1", "1.5", "0..2"])
def test_other_replicas_are_one_line(text: str) -> None:
    with pytest.raises(ConfigError, match=r"try 2 or 1\.\.4"):
        read_scale(text)


@dataclass
class Nodes:
    """As much of ray as tells what a cluster has."""

    cpus: list[float]

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": cpus} if cpus else {}} for cpus in self.cpus]


@pytest.mark.parametrize(
    ("cpus", "gpus", "most", "needs"),
    [
        ([16], 0, 2, {"num_cpus": 8}),
        ([2], 0, 4, {"num_cpus": 1}),
        ([8, 8, 0], 0, 3, {"num_cpus": 4}),
        ([64], 8, 8, {"num_gpus": 1.0}),
        ([64], 3, 4, {"num_gpus": 0.5}),
    ],
)
def test_every_replica_has_its_share(
    cpus: list[float], gpus: int, most: int, needs: dict[str, float]
) -> None:
    assert ray_replicas._needs(Nodes(cpus), gpus, most) == needs


def test_ray_scales_between_the_ends_of_a_range() -> None:
    assert ray_replicas._scaling(Scale(2, 2), 8) == {"num_replicas": 2}
    scaling = ray_replicas._scaling(Scale(1, 4), 8)["autoscaling_config"]
    assert (scaling["min_replicas"], scaling["max_replicas"]) == (1, 4)
    assert scaling["target_ongoing_requests"] == 8


def test_replicas_find_files_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    options = whole_paths(LoadOptions(model="mine", lora=("mine", "owner/name")))
    assert options.model == str(tmp_path / "mine")
    assert options.lora == (str(tmp_path / "mine"), "owner/name")
    assert whole_paths(LoadOptions()).model == "emoji-256"


@pytest.fixture
def refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    monkeypatch.setenv("OPENSANA_CACHE", str(tmp_path))

    def serve(*words: str) -> str:
        """What the command says before it ends."""
        assert main(["serve", "--port", "0", *words]) != 0
        lines = capsys.readouterr().err.splitlines()
        (line,) = [one for one in lines if not one.startswith("opensana: loading")]
        return line

    return serve


def test_flags_that_do_not_go_together(refused: Callable[..., str]) -> None:
    assert "goes with --ray" in refused("--replicas", "2")
    assert "graph is not for a server" in refused("--graph")
    assert "try --device cuda" in refused("--ray", "local", "--device", "cuda:1")
    assert "try 2 or 1..4" in refused("--ray", "local", "--replicas", "none")
    assert "try --ray auto" in refused("--ray", "ray://127.0.0.1:10001")


def test_without_ray_the_extra_is_named(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "pip install 'opensana[ray]'" in refused("--ray", "local")


def test_where_there_is_no_ray(refused: Callable[..., str]) -> None:
    pytest.importorskip("ray.serve")
    line = refused("--ray", "127.0.0.1:1")
    assert "no Ray cluster at '127.0.0.1:1'" in line and "RAY_AUTH_MODE" in line
