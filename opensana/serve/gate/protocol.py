"""HTTP/1.1 of uvicorn with h11, for clients that mean ill: slow ones are cut off, errors have one
shape.

A request, its head and its body, must come within `HEAD_SECONDS`, and `LEAST_BYTES_A_SECOND` more
of its body for each second after that. So half-open connections hold no file descriptor for long.
"""

import asyncio
import json

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from opensana.serve.errors import error_body

HEAD_BYTES = 64 * 1024
HEAD_SECONDS = 20.0
LEAST_BYTES_A_SECOND = 16 * 1024
NO_HTTP = f"this is no HTTP request, or its head is larger than {HEAD_BYTES >> 10} KiB"


class Protocol(H11Protocol):
    """One connection."""

    _timer: asyncio.TimerHandle | None = None
    _since = 0.0
    _bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state in (h11.IDLE, h11.SEND_BODY):
            self._bytes += len(data)
            if self._timer is None:
                self._wait()
        else:
            self._stop()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, NO_HTTP, "bad_request")

    def _wait(self) -> None:
        """For the rest of a request."""
        self._since, self._bytes = self.loop.time(), 0
        self._timer = self.loop.call_later(HEAD_SECONDS, self._late)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        until = self._since + HEAD_SECONDS + self._bytes / LEAST_BYTES_A_SECOND
        if self.loop.time() < until:
            self._timer = self.loop.call_at(until, self._late)
        else:
            self._refuse(408, "the request came too slowly", "too_slow")

    def _refuse(self, status: int, message: str, code: str) -> None:
        """An error, where none was sent yet, and the end of the connection."""
        if not self.transport.is_closing() and self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(error_body(status, message, code, None)).encode()
            headers = [
                ("content-type", "application/json"),
                ("content-length", str(len(body))),
                ("connection", "close"),
            ]
            head = h11.Response(status_code=status, headers=headers, reason=STATUS_PHRASES[status])
            for event in (head, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
