"""HTTP for labelling: POST with limits on time and size, and a rate limit."""

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
    """No complete reply: no or a broken connection, a timeout, or too many bytes."""


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes


class _NoRedirects(HTTPRedirectHandler):
    """Redirects are not followed: the API key is for the given address only."""

    def redirect_request(self, req, fp, code, msg, headers, newurl) -> None:
        return None


_OPENER = build_opener(_NoRedirects)


def post(url: str, body: bytes, headers: Mapping[str, str], *, timeout: float) -> Reply:
    """POST JSON and return the reply of any status; `timeout` seconds in total."""
    request = Request(url, body, {"Content-Type": "application/json", **headers})
    deadline = time.monotonic() + timeout
    try:
        try:
            opened: Any = _OPENER.open(request, timeout=timeout)
        except HTTPError as error:  # a reply with a status of 300 or more
            opened = error
        with opened as response:
            return Reply(response.status, response.headers, _read(response, deadline))
    except URLError as error:
        raise Unreachable(_reason(error.reason, timeout)) from error
    except (OSError, HTTPException) as error:
        raise Unreachable(_reason(error, timeout)) from error


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
    """Whether a key may be sent there: over https, or to this machine."""
    parts = urlsplit(url)
    return parts.scheme == "https" or is_loopback(parts.hostname or "")


def is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds in a Retry-After header, given as a number or a date; None without one."""
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
    """A rate limit for all threads, in requests per minute, that can be paused."""

    def __init__(self, per_minute: float | None) -> None:
        self._gap = 60 / per_minute if per_minute else 0.0
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Block until the next request may start."""
        while True:
            with self._lock:
                seconds = self._next - time.monotonic()
                if seconds <= 0:
                    self._next = time.monotonic() + self._gap
                    return
            time.sleep(seconds)

    def pause(self, seconds: float) -> None:
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)
