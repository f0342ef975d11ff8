"""A real Ray on this machine, one of whose workers is killed: every picture exactly once."""

import json
import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from threading import Thread

import pytest

from opensana.errors import MissingExtraError, OpensanaError
from opensana.label import cluster
from opensana.label.cluster import connected
from opensana.label.journal import writing
from opensana.label.stages import Stage
from tests.label.folders import draw, expected, open_pictures, open_stage

pytest.importorskip("ray")


@pytest.fixture(scope="module")
def ray() -> Iterator[cluster.Cluster]:
    with connected("local", 2) as running:
        yield running


def lines(labels: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (labels / "captions.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_killed_worker_loses_nothing(
    ray: cluster.Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "BLOCK", 8)
    folder, labels = draw(tmp_path / "pictures", 160), tmp_path / "labels"
    pids, killed = tmp_path / "pids", list[int]()
    pids.mkdir()
    with writing(labels) as writer:
        pictures = partial(open_pictures, folder)
        killer = Thread(target=kill_one, args=(pids, labels, killed))
        killer.start()
        stage = partial(open_stage, 0.05, pids)
        name, failed = ray.run(stage, pictures, writer, allowed=0)
        killer.join()
    assert len(killed) == 1 and len(list(pids.iterdir())) == 3, "a new worker took its place"
    assert not failed and name == open_stage().name
    assert len(lines(labels)) == 160
    assert {line["key"]: line["text"] for line in lines(labels)} == expected(folder)
    assert not list((labels / "blocks").glob("*.jsonl"))


def kill_one(pids: Path, labels: Path, killed: list[int]) -> None:
    """Kill a worker once the first blocks are there."""
    while len(list((labels / "blocks").glob("captions-*.jsonl"))) < 3:
        time.sleep(0.02)
    killed.append(int(next(pids.iterdir()).name))
    os.kill(killed[0], signal.SIGKILL)


@pytest.mark.slow
def test_a_second_run_does_only_what_is_missing(ray: cluster.Cluster, tmp_path: Path) -> None:
    folder, labels = draw(tmp_path / "pictures", 5), tmp_path / "labels"
    for count in (5, 9, 9):
        draw(folder, count)
        with writing(labels) as writer:
            ray.run(open_stage, partial(open_pictures, folder), writer, allowed=0)
        assert len(lines(labels)) == count
    (folder / "00009.png").write_bytes(b"broken")
    with writing(labels) as writer:
        _, failed = ray.run(open_stage, partial(open_pictures, folder), writer, allowed=1)
    assert list(failed) == ["00009"]
    assert "00009" in (labels / "rejects.jsonl").read_text()


@pytest.mark.slow
def test_a_worker_that_cannot_start_is_one_line(ray: cluster.Cluster, tmp_path: Path) -> None:
    with writing(tmp_path / "labels") as writer, pytest.raises(OpensanaError) as error:
        ray.run(no_stage, partial(open_pictures, tmp_path), writer, allowed=0)
    assert "this model is broken" in str(error.value)


def no_stage() -> Stage:
    raise OpensanaError("this model is broken")


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"opensana\[cluster\]"), connected("local", 1):
        pass
