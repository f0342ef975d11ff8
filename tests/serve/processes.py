"""A server in a process of its own, watched from outside."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass
class Process:
    """A running server."""

    process: subprocess.Popen[bytes]
    url: str
    client: httpx2.Client
    log: Path
    """What it wrote to stderr."""

    def figures(self) -> dict[tuple[str, ...], float]:
        """What /metrics says, by name and label values."""
        text = self.client.get("/metrics").text
        return {
            (one.name, *one.labels.values()): one.value
            for family in text_string_to_metric_families(text)
            for one in family.samples
        }

    @property
    def memory(self) -> int:
        """Resident bytes."""
        return int(self._status("VmRSS").split()[0]) * 1024

    @property
    def threads(self) -> int:
        return int(self._status("Threads"))

    @property
    def files(self) -> int:
        """Open file descriptors, sockets among them."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def _status(self, name: str) -> str:
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(line.partition(":")[2] for line in lines if line.startswith(name + ":"))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


@contextmanager
def running(folder: Path, *, port: int | None = None, **options: Any) -> Iterator[Process]:
    """A server of gradients over a folder, on a free port unless one is given.

    `options` are those of `painted_server`.
    """
    port, log = port or free_port(), folder.with_name(folder.name + ".log")
    command = [sys.executable, "-m", "tests.serve.painted_server"]
    command += [str(folder), str(port), json.dumps(options)]
    url = f"http://127.0.0.1:{port}"
    with (
        log.open("ab") as written,
        subprocess.Popen(command, cwd=ROOT, stderr=written) as process,
        httpx2.Client(base_url=url, timeout=30, verify=False) as client,
    ):
        found = Process(process, url, client, log)
        try:
            until(lambda: _answers(client), process)
            yield found
        finally:
            process.kill()


def until(true: Callable[[], bool], process: subprocess.Popen[bytes] | None = None) -> None:
    """Wait, at most a minute and for as long as a process lives."""
    end = time.monotonic() + 60
    while not true():
        assert process is None or process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)


def _answers(client: httpx2.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx2.TransportError:
        return False
