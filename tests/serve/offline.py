"""A command where there is no network, and what it and its children tried to reach all the same."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HOOK = """
import os, sys

def note(event, values):
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        address = values[0] if event.startswith("socket.get") else values[1]
        host = address[0] if isinstance(address, tuple) else address
        host = host.decode("latin-1") if isinstance(host, bytes) else host
        if not (host is None or host in ("", "localhost", "::1", "0.0.0.0") or host[0] == "/"
                or host.startswith("127.")):
            with open(os.environ["ATTEMPTS"], "a") as file:
                file.write(f"{event} {address} of {sys.argv}\\n")

sys.addaudithook(note)
"""
LOOPBACK = """
import fcntl, os, socket, struct, sys
with socket.socket() as any:
    up = struct.pack("16sh14x", b"lo", 1 | 64)  # IFF_UP, IFF_RUNNING
    fcntl.ioctl(any, 0x8914, up)  # SIOCSIFFLAGS
os.execvp(sys.argv[1], sys.argv[1:])
"""


def run_offline(folder: Path, *command: str) -> tuple[str, list[str]]:
    """What a command prints in a network of its own, which holds nothing but this machine.

    With it come the other hosts that any Python in it asked for. Skips where the kernel forbids.
    """
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not there")
    (folder / "sitecustomize.py").write_text(HOOK)
    attempts = folder / "attempts"
    attempts.touch()
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    variables = os.environ | {"PYTHONPATH": path, "ATTEMPTS": str(attempts)}
    words = ["unshare", "--map-root-user", "--net", sys.executable, "-c", LOOPBACK, *command]
    done = subprocess.run(words, env=variables, capture_output=True, text=True)
    if "unshare failed" in done.stderr:
        pytest.skip("a network of its own is not allowed here")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout, attempts.read_text().splitlines()
