"""Run a server: the socket first, then the model, then requests, until a signal; then drain."""

import asyncio
import errno
import ipaddress
import resource
import signal
import socket
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from opensana.errors import ConfigError
from opensana.serve.app import make_app
from opensana.serve.gate.keys import NO_KEYS, Keys, read_keys
from opensana.serve.gate.protocol import HEAD_BYTES, Protocol
from opensana.serve.logs import log, log_libraries
from opensana.serve.service import Service

PRUNE_SECONDS = 600
CLOSING_SECONDS = 5
BACKLOG = 2048


def keys_for(listener: socket.socket, path: Path | None, *, insecure: bool) -> Keys:
    """The keys of a file; ConfigError for an address that others reach, without any."""
    if path is not None:
        return read_keys(path)
    if not is_loopback(listener) and not insecure:
        raise ConfigError(
            f"{listener.getsockname()[0]} can be reached from other machines: name a file of keys "
            "by --keys, or say --insecure to answer anybody"
        )
    return NO_KEYS


def bind(host: str, port: int) -> socket.socket:
    """A socket that nobody can connect to yet; ConfigError where the address is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Its connections inherit it. Else the end of an answer waits 40 ms for the client's system.
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        found.bind((host, port))
    except OSError as error:
        found.close()
        raise _cannot_listen(host, port, error) from error
    return found


def is_loopback(listener: socket.socket) -> bool:
    """Whether this machine alone can connect."""
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback


def url(listener: socket.socket) -> str:
    """Where it can be reached."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _cannot_listen(host: str, port: int, error: OSError) -> ConfigError:
    flag = "--port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "--host"
    return ConfigError(
        f"cannot listen on {host}, port {port}: {error.strerror}; try another {flag}"
    )


class _Server(uvicorn.Server):
    """uvicorn, whose signals are ours."""

    @contextmanager
    def capture_signals(self):
        yield


def serve(service: Service, listener: socket.socket, *, keys: Keys, grace: float) -> None:
    """Answer until SIGTERM or Ctrl-C, then finish what is being drawn within `grace` seconds."""
    try:
        listener.listen(BACKLOG)
    except OSError as error:  # another process, which was bound at the same time, was first
        host, port = listener.getsockname()[:2]
        raise _cannot_listen(host, port, error) from error
    app = make_app(service, keys=keys, any_host=not is_loopback(listener))
    log_libraries()
    _allow_many_files()
    asyncio.run(_serve(service, _Server(uvicorn_config(app)), listener, grace))


def uvicorn_config(app: ASGIApp, *, closing: int = CLOSING_SECONDS) -> uvicorn.Config:
    """How uvicorn runs an application here."""
    return uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=closing,
        h11_max_incomplete_event_size=HEAD_BYTES,
        server_header=False,
    )


def _allow_many_files() -> None:
    """Every reader of events is an open file; the usual limit of 1024 can be raised."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def _serve(
    service: Service, server: uvicorn.Server, listener: socket.socket, grace: float
) -> None:
    loop, asked = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.set)
    await asyncio.to_thread(service.start)  # Ray plans on another thread than this
    answering = asyncio.create_task(server.serve(sockets=[listener]))
    log("listening", url=url(listener))
    pruning = asyncio.create_task(_prune(service))
    stopping = asyncio.create_task(asked.wait())
    await asyncio.wait((answering, stopping), return_when=asyncio.FIRST_COMPLETED)
    service.drain()
    log("draining", grace=grace)
    done = await service.drained(grace)
    pruning.cancel()
    server.should_exit = True
    await answering
    service.close()
    log("stopped", unfinished=not done)


async def _prune(service: Service) -> None:
    while True:
        await asyncio.sleep(PRUNE_SECONDS)
        await asyncio.to_thread(service.prune)
