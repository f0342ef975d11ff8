"""An OpenAI-compatible chat server on this machine that describes colours, and misbehaves."""

import base64
import io
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any

from PIL import Image

from tests.label.folders import colour_of

LATE = 2.5
FEW = 5

Misbehave = Callable[["Handler", int], bool]
"""Called with the how-manieth request of the picture it is; True if it has answered already."""


class Handler(BaseHTTPRequestHandler):
    server: "ChatServer"  # type: ignore[assignment]

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        body = json.loads(data)
        address = body["messages"][0]["content"][0]["image_url"]["url"]
        encoded = base64.b64decode(address.removeprefix("data:image/jpeg;base64,"))
        with self.server.lock:
            self.server.paths.add(self.path)
            self.server.bodies.append(data)
            self.server.headers.append(dict(self.headers))
            self.server.times.append(time.monotonic())
            self.server.asked[encoded] += 1
            asked = self.server.asked[encoded]
        try:
            if not self.server.misbehave(self, asked):
                with self.server.lock:
                    self.server.good[encoded] += 1
                self.say(chat(colour_of(Image.open(io.BytesIO(encoded)))))
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client gave up waiting

    def say(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)


class ChatServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, misbehave: Misbehave) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.misbehave, self.lock = misbehave, Lock()
        self.asked: Counter[bytes] = Counter()
        self.good: Counter[bytes] = Counter()
        self.paths: set[str] = set()
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


def chat(text: Any) -> bytes:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


def well(handler: Handler, asked: int) -> bool:
    return False


class Wild:
    """Two of three requests go wrong, in every way there is; the fourth of a picture never does."""

    def __init__(self) -> None:
        self.draw = random.Random(1)
        self.kinds: Counter[str] = Counter()

    def __call__(self, handler: Handler, asked: int) -> bool:
        ways = (self.broken, self.late, self.busy, self.junk, self.cut, None, None)
        way = self.draw.choice(ways) if asked < 3 else None
        if way is None or (way == self.late and self.kinds["late"] == FEW):
            return False
        self.kinds[way.__name__] += 1
        way(handler)
        return True

    def broken(self, handler: Handler) -> None:
        handler.say(b"<html>oops</html>", self.draw.choice((500, 502, 503)))

    def late(self, handler: Handler) -> None:
        time.sleep(LATE)
        handler.say(chat("too late"))

    def busy(self, handler: Handler) -> None:
        handler.say(b"{}", 429, Retry_After="0")

    def junk(self, handler: Handler) -> None:
        junk = (b"not json", b"[" * 100_000, b'{"choices": []}', chat(None), chat(" \0 "))
        handler.say(self.draw.choice((*junk, chat("again and " * 900), b" " * 2_000_000)))

    def cut(self, handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b'{"choices": [')
        handler.close_connection = True


@contextmanager
def serving(misbehave: Misbehave = well) -> Iterator[ChatServer]:
    server = ChatServer(misbehave)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
