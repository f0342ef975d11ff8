"""A real Ray on this machine, one of whose workers is killed: every block counts exactly once.

Also tests `label/spread.py`.
"""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

import opensana.features.encode as job
from opensana.cli import main
from opensana.datasets.record import Record
from opensana.errors import DataError, MissingExtraError, OpensanaError
from opensana.features.blocks import BlockEncoder, EncodeOptions
from opensana.features.encode import encode, encode_on
from opensana.features.encoders import Encoders
from opensana.label import spread
from opensana.label.journal import writing
from opensana.label.stages import Stage
from opensana.workers.cluster import Cluster, connected
from tests import tiny
from tests.features.conftest import PaintedSource, decode
from tests.label.folders import draw, expected, open_pictures, open_stage

pytest.importorskip("ray")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def ray() -> Iterator[Cluster]:
    with connected("local", 2) as running:
        yield running


class OwnCaptions(PaintedSource):
    """No caption comes twice."""

    def record(self, index: int) -> Record:
        record = super().record(index)
        captions = [replace(c, text=f"{c.text} of {index}") for c in record.captions]
        return replace(record, captions=tuple(captions))


def open_encoder(
    source: PaintedSource, seconds: float = 0.0, pids: Path | None = None
) -> BlockEncoder:
    """Tiny encoders, slow by choice; leaves a file named after its process in `pids`."""
    if pids is not None:
        (pids / str(os.getpid())).touch()

    def slow(picture: bytes) -> np.ndarray:
        time.sleep(seconds)
        return decode(picture)

    sana = tiny.sana(instruction="none")
    encoders = Encoders(sana.autoencoder, sana.text, "tiny", "none", 300)
    return BlockEncoder(source, encoders, EncodeOptions(size=64, batch=4), slow)


def assert_alike(one: Path, other: Path) -> None:
    """Two caches with the same samples, captions and, to rounding, numbers."""
    names, others = ({p.relative_to(f) for p in f.rglob("*.*")} for f in (one, other))
    assert names == others
    for name in names:
        if name.suffix == ".npy":
            arrays = [np.load(folder / name) for folder in (one, other)]
            np.testing.assert_allclose(*arrays, rtol=2e-3, atol=2e-3, err_msg=str(name))
        elif name.name == "manifest.json":
            keys = [json.loads((folder / name).read_text())["keys"] for folder in (one, other)]
            assert keys[0] == keys[1]
        else:
            assert (one / name).read_bytes() == (other / name).read_bytes(), name


def lines(labels: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (labels / "captions.jsonl").read_text().splitlines()]


def kill_one(pids: Path, ready: Callable[[], bool], killed: list[int]) -> None:
    """Kill a worker once the work has begun."""
    while not ready():
        time.sleep(0.02)
    killed.append(int(max(pids.iterdir(), key=lambda path: path.stat().st_mtime).name))
    os.kill(killed[0], signal.SIGKILL)


def squares(block: int) -> Iterator[int]:
    yield from (block * block for _ in range(2))


def open_squares() -> Callable[[int], Iterator[int]]:
    return squares


@pytest.mark.slow
def test_results_in_the_order_of_the_blocks(ray: Cluster) -> None:
    assert list(ray.map(open_squares, range(5), ordered=True)) == [0, 0, 1, 1, 4, 4, 9, 9, 16, 16]
    assert list(ray.map(open_squares, [])) == []


def test_labelling(ray: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spread, "BLOCK", 2)
    folder, labels = draw(tmp_path / "pictures", 5), tmp_path / "labels"
    with writing(labels) as writer:
        spread.run(ray, open_stage, partial(open_pictures, folder), writer, allowed=0)
    assert len(lines(labels)) == 5
    assert {line["key"]: line["text"] for line in lines(labels)} == expected(folder)


@pytest.mark.slow
def test_encoding_gives_the_cache_of_a_plain_run(
    ray: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "BLOCK", 8)
    source, said = OwnCaptions(20), list[str]()
    opened = partial(open_encoder, source)
    encode(opened(), tmp_path / "plain", report=said.append)
    to = tmp_path / "ray"
    assert encode_on(ray, opened, source, to, max_bad=0, report=said.append) == 20
    assert_alike(to, tmp_path / "plain")


@pytest.mark.slow
def test_a_killed_labeller_loses_nothing(
    ray: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spread, "BLOCK", 8)
    folder, labels = draw(tmp_path / "pictures", 160), tmp_path / "labels"
    pids, killed = tmp_path / "pids", list[int]()
    pids.mkdir()

    def ready() -> bool:
        return len(list((labels / "blocks").glob("captions-*.jsonl"))) >= 3

    with writing(labels) as writer:
        killer = Thread(target=kill_one, args=(pids, ready, killed))
        killer.start()
        stage = partial(open_stage, 0.05, pids)
        name, failed = spread.run(ray, stage, partial(open_pictures, folder), writer, allowed=0)
        killer.join()
    assert len(killed) == 1
    assert len(list(pids.iterdir())) == 4, "one describes, two work, and a new one took its place"
    assert not failed and name == open_stage().name
    assert len(lines(labels)) == 160
    assert {line["key"]: line["text"] for line in lines(labels)} == expected(folder)
    assert not list((labels / "blocks").glob("*.jsonl"))


@pytest.mark.slow
def test_a_killed_encoder_changes_nothing(
    ray: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "BLOCK", 8)
    source, said = OwnCaptions(80, bad=[9]), list[str]()
    to, pids, killed = tmp_path / "ray", tmp_path / "pids", list[int]()
    pids.mkdir()
    encode(replace_max_bad(open_encoder(source), 0.1), tmp_path / "plain", report=said.append)

    def ready() -> bool:
        progress = to.with_name("ray.partial") / "progress.json"
        return progress.exists() and json.loads(progress.read_text())["state"]["done"] >= 8

    killer = Thread(target=kill_one, args=(pids, ready, killed))
    killer.start()
    opened = partial(open_encoder, source, 0.1, pids)
    assert encode_on(ray, opened, source, to, max_bad=0.1, report=said.append) == 79
    killer.join()
    assert len(killed) == 1 and len(list(pids.iterdir())) == 4
    assert_alike(to, tmp_path / "plain")


def replace_max_bad(encoder: BlockEncoder, max_bad: float) -> BlockEncoder:
    encoder.options = replace(encoder.options, max_bad=max_bad)
    return encoder


@pytest.mark.slow
def test_encoding_stops_early_and_goes_on(
    ray: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Captions that come again in later blocks are written once."""
    monkeypatch.setattr(job, "BLOCK", 8)
    source, said = PaintedSource(30, bad=[1, 17]), list[str]()
    opened, to = partial(open_encoder, source), tmp_path / "ray"
    with pytest.raises(DataError, match="2 of 30 records"):
        encode_on(ray, opened, source, to, max_bad=0.04, report=said.append)
    progress = json.loads((tmp_path / "ray.partial" / "progress.json").read_text())
    assert progress["state"]["done"] == 24
    assert encode_on(ray, opened, source, to, max_bad=0.1, report=said.append) == 28
    encode(replace_max_bad(opened(), 0.1), tmp_path / "plain", report=said.append)
    assert_alike(to, tmp_path / "plain")


@pytest.mark.slow
def test_a_second_labelling_does_only_what_is_missing(ray: Cluster, tmp_path: Path) -> None:
    folder, labels = draw(tmp_path / "pictures", 5), tmp_path / "labels"
    pictures = partial(open_pictures, folder)
    for count in (5, 9, 9):
        draw(folder, count)
        with writing(labels) as writer:
            spread.run(ray, open_stage, pictures, writer, allowed=0)
        assert len(lines(labels)) == count
    draw(folder, 10)
    (folder / "00009.png").write_bytes(b"broken")
    with writing(labels) as writer:
        _, failed = spread.run(ray, open_stage, pictures, writer, allowed=1)
    assert list(failed) == ["00009"]
    assert "00009" in (labels / "rejects.jsonl").read_text()


def test_a_worker_that_cannot_start_is_one_line(ray: Cluster, tmp_path: Path) -> None:
    with writing(tmp_path / "labels") as writer, pytest.raises(OpensanaError) as error:
        spread.run(ray, no_stage, partial(open_pictures, tmp_path), writer, allowed=0)
    assert str(error.value).startswith("a worker failed: ")
    assert "this model is broken" in str(error.value) and "\n" not in str(error.value)


def no_stage() -> Stage:
    raise OpensanaError("this model is broken")


@pytest.mark.slow
def test_an_error_in_a_block_is_one_line(ray: Cluster) -> None:
    with pytest.raises(OpensanaError, match=r"a worker failed: .*block 1 is broken") as error:
        list(ray.map(open_broken, [0, 1, 2]))
    assert "\n" not in str(error.value)


def open_broken() -> Callable[[int], Sequence[int]]:
    def work(block: int) -> Sequence[int]:
        if block == 1:
            raise ValueError("block 1 is broken")
        return [block]

    return work


@pytest.mark.slow
def test_a_block_that_kills_its_workers_ends_the_run(ray: Cluster) -> None:
    with pytest.raises(OpensanaError, match="block 1 has killed 3 workers"):
        list(ray.map(open_deadly, [0, 1, 2]))


def open_deadly() -> Callable[[int], Sequence[int]]:
    def work(block: int) -> Sequence[int]:
        if block == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return [block]

    return work


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense", "host:port"])
def test_a_wrong_address_is_one_line(address: str) -> None:
    expected = pytest.raises(OpensanaError, match=f"no Ray cluster at '{address}'")
    with expected as error, connected(address, 1):
        pass
    assert "\n" not in str(error.value)


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"opensana\[cluster\]"), connected("local", 1):
        pass


def test_workers_go_with_ray(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["encode", str(tmp_path), "--model", "emoji-256", "--to", str(tmp_path / "to")]
    assert main([*command, "--workers", "2"]) == 2
    assert "goes with --ray" in capsys.readouterr().err
