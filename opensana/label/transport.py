"""HTTP for labelling: one POST with limits on time and size, and the pace of many of them."""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPResponse
from ipaddress import ip_address
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

LARGEST_REPLY = 1 << 20
CHUNK = 65_536


class Unreachable(Exception):
    """No whole reply came: no connection, a broken one, too slow, or too much of it."""


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes


class _NoRedirects(HTTPRedirectHandler):
    """A redirect is an answer like any other: the key is for the address that was given."""

    def redirect_request(self, req, fp, code, msg, headers, newurl) -> None:
        return None


_OPENER = build_opener(_NoRedirects)


def post(url: str, body: bytes, headers: Mapping[str, str], *, timeout: float) -> Reply:
    """POST JSON, whatever the status of the reply; `timeout` seconds for all of it."""
    request = Request(url, body, {"Content-Type": "application/json", **headers})
    deadline = time.monotonic() + timeout
    try:
        with _open(request, timeout) as response:
            return Reply(response.status, response.headers, _read(response, deadline))
    except URLError as error:
        raise Unreachable(_reason(error.reason, timeout)) from error
    except (OSError, HTTPException) as error:
        raise Unreachable(_reason(error, timeout)) from error


def _open(request: Request, timeout: float) -> Any:
    try:
        return _OPENER.open(request, timeout=timeout)
    except HTTPError as error:  # a reply with a status of 300 or more
        return error


def _read(response: HTTPResponse, deadline: float) -> bytes:
    body = b""
    while chunk := response.read1(CHUNK):
        body += chunk
        if len(body) > LARGEST_REPLY:
            raise Unreachable(f"the reply is larger than {LARGEST_REPLY} bytes")
        if time.monotonic() > deadline:
            raise TimeoutError
    return body


def _reason(error: object, timeout: float) -> str:
    if isinstance(error, TimeoutError):
        return f"no reply within {timeout:g} s"
    return f"{type(error).__name__}: {error}" if isinstance(error, Exception) else str(error)


def may_carry_key(url: str) -> bool:
    """Whether a key is safe there: by https, or to this machine."""
    parts = urlsplit(url)
    return parts.scheme == "https" or is_loopback(parts.hostname or "")


def is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait for, as a number or a date; None if it does not."""
    value = headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


class Pace:
    """Lets requests of all threads start so many a minute at most, and none during a pause."""

    def __init__(self, per_minute: float | None) -> None:
        self._gap = 60 / per_minute if per_minute else 0.0
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Come back when the next request may start."""
        while (seconds := self._claim()) > 0:
            time.sleep(seconds)

    def pause(self, seconds: float) -> None:
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)

    def _claim(self) -> float:
        """Take the next start if it has come, else the seconds until then."""
        with self._lock:
            now = time.monotonic()
            if now >= self._next:
                self._next = now + self._gap
                return 0.0
            return self._next - now
