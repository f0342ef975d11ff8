"""What every request passes before a route sees it: an id, its size, its origin, its key."""

import re
import secrets
import time
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from opensana.serve.errors import CLIENT_LEFT, ApiError, answer, unexpected
from opensana.serve.gate.keys import LOCAL, Keys
from opensana.serve.logs import log
from opensana.serve.metrics import Metrics

OPEN = ("/healthz", "/readyz")
"""Answered without a key."""
SAFE = ("GET", "HEAD", "OPTIONS")
ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
HEADERS = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}


class Guard:
    """ASGI middleware."""

    def __init__(
        self, app: ASGIApp, *, keys: Keys, body_bytes: int, metrics: Metrics, any_host: bool
    ) -> None:
        self._app, self._keys, self._most, self._metrics = app, keys, body_bytes, metrics
        self._any_host = any_host or bool(keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, headers = time.monotonic(), Headers(scope=scope)
        asked = headers.get("x-request-id", "")
        id = asked if ID.fullmatch(asked) else secrets.token_hex(8)
        status, begun = CLIENT_LEFT, False

        def count() -> None:
            self._metrics.requests.labels(_route(scope), str(status)).inc()

        async def answering(message: Message) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                status, begun = message["status"], True
                count()  # before the client can ask for the figures
                found = MutableHeaders(scope=message)
                found["x-request-id"] = id
                for name, value in HEADERS.items():
                    found.setdefault(name, value)
            await send(message)

        try:
            try:
                self._check(scope, headers)
                await self._app(scope, _limited(receive, self._most), answering)
            except ClientDisconnect:
                pass  # in the middle of its body
            except Exception as error:
                if begun:
                    raise
                known = error if isinstance(error, ApiError) else unexpected(error)
                await answer(known, scope["path"])(scope, receive, answering)
        finally:
            if not begun:
                count()
            key: Any = scope.get("key")
            log("request", id=id, method=scope["method"], route=_route(scope), status=status,
                seconds=round(time.monotonic() - start, 4), key=key and key.name)  # fmt: skip

    def _check(self, scope: Scope, headers: Headers) -> None:
        """ApiError for what no route should see; else the caller's key is in the scope."""
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._most:
            raise _too_large(self._most)
        host = headers.get("host", "").lower()
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if not self._any_host and name not in LOOPBACK:
            # A name that points here from elsewhere (DNS rebinding).
            raise ApiError(403, "this server answers to localhost only", code="wrong_host")
        if scope["method"] not in SAFE and not _same_site(headers, host):
            raise ApiError(403, "requests from other sites are refused", code="cross_site")
        scope["key"] = LOCAL
        if self._keys and scope["path"] not in OPEN:
            key = self._keys.find(headers.get("authorization", "").encode("latin-1"))
            if key is None:
                raise ApiError(
                    401,
                    "a key is needed: Authorization: Bearer KEY, or KEY as a password",
                    code="invalid_api_key",
                    headers={"www-authenticate": 'Basic realm="opensana", charset="UTF-8"'},
                )
            scope["key"] = key


def _route(scope: Scope) -> str:
    """The pattern of the path, which tells nothing of the caller."""
    return getattr(scope.get("route"), "path", "none")


def _same_site(headers: Headers, host: str) -> bool:
    """Whether a browser says that the request comes from a page of this server, or none asks."""
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None and site not in ("same-origin", "none"):
        return False
    return origin is None or origin.partition("://")[2].lower() == host


def _limited(receive: Receive, most: int) -> Receive:
    """The body, until it is too large."""
    total = 0

    async def limited() -> Message:
        nonlocal total
        message = await receive()
        total += len(message.get("body", b""))
        if total > most:
            raise _too_large(most)
        return message

    return limited


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"the request is larger than {most >> 20} MiB", code="too_large")
