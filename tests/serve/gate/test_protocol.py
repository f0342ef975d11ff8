"""Clients that are slow, or send what is no HTTP: the server stays quick for everybody else."""

import asyncio
import json
import socket
import statistics
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from opensana.serve.gate import protocol
from tests.serve.gradient import Server, serving
from tests.serve.processes import Process, running

HALF = b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\n"
BODY = HALF + b"Content-Length: 100000\r\n\r\n{"
BOMBS = [
    HALF + b"".join(b"X-%d: %s\r\n" % (n, b"y" * 60) for n in range(5000)) + b"\r\n",
    HALF + b"X: " + b"y" * 1_000_000 + b"\r\n\r\n",
    b"GET /" + b"y" * 1_000_000 + b" HTTP/1.1\r\n\r\n",
]
JUNK = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET\r\n\r\n", b"\0" * 100,
    b"GET / HTTP/x\r\n\r\n",
    HALF + b"No colon\r\n\r\n", HALF + b"Content-Length: -1\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n",
    HALF + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
    HALF + b"Transfer-Encoding: x\r\n\r\n",
    HALF + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
]  # fmt: skip


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path) as found:
        yield found


def connected(url: str) -> socket.socket:
    host, _, port = url.rpartition("/")[2].partition(":")
    return socket.create_connection((host, int(port)), timeout=10)


def answered(url: str, sent: bytes) -> bytes:
    """All that comes back until the server closes; it may close before it has read all."""
    with connected(url) as found:
        parts: list[bytes] = []
        try:
            found.sendall(sent)
            while part := found.recv(65536):
                parts.append(part)
        except OSError:
            pass
        return b"".join(parts)


def check_refused(answer: bytes, status: int) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), head
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("sent", JUNK, ids=range(len(JUNK)))
def test_what_is_no_http_is_refused_in_one_shape(server: Server, sent: bytes) -> None:
    check_refused(answered(server.url, sent), 400)
    assert server.client.get("/healthz").status_code == 200


@pytest.mark.parametrize("sent", BOMBS, ids=range(len(BOMBS)))
def test_a_head_may_not_be_large(server: Server, sent: bytes) -> None:
    answer = answered(server.url, sent)
    if answer:  # else the client had more to send and never read it
        check_refused(answer, 400)
    server.wait(server.submit()["id"])


@pytest.mark.parametrize("begun", [b"", HALF, BODY], ids=["nothing", "half a head", "no body"])
def test_a_request_that_does_not_come_ends_its_connection(
    server: Server, monkeypatch: pytest.MonkeyPatch, begun: bytes
) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.3)
    start = time.monotonic()
    answer = answered(server.url, begun)
    assert 0.25 < time.monotonic() - start < 3
    check_refused(answer, 408)


def test_a_body_that_keeps_coming_has_its_time(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.2)
    monkeypatch.setattr(protocol, "LEAST_BYTES_A_SECOND", 10_000)
    text = json.dumps({"prompt": "x" * 9000}).encode()
    with connected(server.url) as found:
        found.sendall(HALF + b"Content-Length: %d\r\n\r\n" % len(text))
        for start in range(0, len(text), 1000):
            time.sleep(0.05)
            found.sendall(text[start : start + 1000])
        assert found.recv(100).startswith(b"HTTP/1.1 202")


def test_one_that_drips_its_body_is_cut_off(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.2)
    with connected(server.url) as found:
        found.sendall(BODY)
        start = time.monotonic()
        with suppress(OSError):
            while time.monotonic() - start < 5:
                found.sendall(b" ")
                time.sleep(0.02)
    assert time.monotonic() - start < 3


def p95(server: Process, count: int) -> float:
    """Seconds in which a good client gets its job."""
    times: list[float] = []
    for _ in range(count):
        start = time.perf_counter()
        assert server.client.get("/v1/capabilities").status_code == 200
        times.append(time.perf_counter() - start)
    return statistics.quantiles(times, n=20)[-1]


async def _hold(url: str, sent: bytes, count: int) -> list[tuple]:
    """So many connections that have sent something, each with the first of its answer."""
    host, _, port = url.rpartition("/")[2].partition(":")
    gate = asyncio.Semaphore(100)

    async def one() -> tuple:
        async with gate:
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(sent)
            if sent != HALF:
                assert b" 200 " in await asyncio.wait_for(reader.readline(), 120)
            return reader, writer

    return await asyncio.gather(*(one() for _ in range(count)))


def _compare(server: Process, sent: bytes, count: int) -> tuple[float, float]:
    """The good client's p95 without and with these connections."""

    async def both() -> tuple[float, float]:
        before = await asyncio.to_thread(p95, server, 300)
        held = await _hold(server.url, sent, count)
        during = await asyncio.to_thread(p95, server, 300)
        for _, writer in held:
            writer.close()
        return before, during

    return asyncio.run(both())


@pytest.mark.slow
def test_two_hundred_half_open_connections_slow_nobody(tmp_path: Path) -> None:
    with running(tmp_path / "jobs") as server:
        before, during = _compare(server, HALF, 200)
        print(f"\np95 {before * 1000:.1f} ms, with 200 half-open {during * 1000:.1f} ms")
        assert during < 2 * before
        files = server.files
        time.sleep(protocol.HEAD_SECONDS + 2)
        assert server.files < files - 190 or files < 50, "they were closed"


@pytest.mark.slow
@pytest.mark.parametrize("count", [1_000, 10_000])
def test_idle_readers_of_events_slow_nobody(tmp_path: Path, count: int) -> None:
    with running(tmp_path / "jobs", step=0.5, batch=1) as server:
        server.client.post("/v1/jobs", json={"prompt": "first", "steps": 100})
        waiting = {"prompt": "waits", "steps": 200}
        id = server.client.post("/v1/jobs", json=waiting).json()["id"]
        sent = f"GET /v1/jobs/{id}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        memory = server.memory
        before, during = _compare(server, sent, count)
        more = (server.memory - memory) / count / 1024
        print(
            f"\np95 {before * 1000:.1f} ms, with {count} readers {during * 1000:.1f} ms; "
            f"{more:.0f} KiB a reader"
        )
        assert during < 2 * before


@pytest.mark.slow
def test_heads_that_are_bombs_slow_nobody(tmp_path: Path) -> None:
    with running(tmp_path / "jobs") as server:

        async def both() -> tuple[float, float]:
            before = await asyncio.to_thread(p95, server, 300)
            stop = asyncio.Event()

            async def bomb(number: int) -> None:
                while not stop.is_set():
                    await asyncio.to_thread(answered, server.url, BOMBS[number % len(BOMBS)])
                    await asyncio.sleep(0.1)

            bombers = [asyncio.create_task(bomb(number)) for number in range(3)]
            during = await asyncio.to_thread(p95, server, 300)
            stop.set()
            await asyncio.gather(*bombers)
            return before, during

        memory = server.memory
        before, during = asyncio.run(both())
        print(f"\np95 {before * 1000:.1f} ms, under bombs {during * 1000:.1f} ms")
        assert during < 2 * before and server.memory - memory < 50 * 2**20
