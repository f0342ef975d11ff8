"""A server's jobs over HTTP, with nothing but the standard library."""

import base64
import contextlib
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

POLL_SECONDS = 0.2
LAST = ("completed", "failed", "cancelled")


class ServerError(RuntimeError):
    """What the server said."""


@dataclass(frozen=True)
class Client:
    url: str
    key: str = ""

    def draw(
        self,
        body: Mapping[str, Any],
        *,
        on_progress: Callable[[float], None],
        stopped: Callable[[], bool],
    ) -> list[bytes]:
        """The PNGs of a job; none as soon as `stopped` says so.

        The job is cancelled then, and if `on_progress` raises, as ComfyUI's bar does when stopped.
        """
        job = self._json("POST", "/v1/jobs", body)
        try:
            while job["status"] not in LAST:
                if stopped():
                    return []
                time.sleep(POLL_SECONDS)
                job = self._json("GET", f"/v1/jobs/{job['id']}")
                on_progress(job["progress"])
        finally:
            if job["status"] not in LAST:
                with contextlib.suppress(ServerError):  # the server is gone, which was said
                    self._json("POST", f"/v1/jobs/{job['id']}/cancel")
        if job["status"] != "completed":
            raise ServerError((job["error"] or {"message": "the job was cancelled"})["message"])
        return [self._send("GET", one["url"]) for one in job["images"]]

    def _json(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        return json.loads(self._send(method, path, body))

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json"}
        if self.key:
            headers["authorization"] = f"Bearer {self.key}"
        address = self.url.rstrip("/") + path
        if not address.startswith(("http://", "https://")):
            raise ServerError(f"the address of a server begins with http://, got {self.url!r}")
        request = urllib.request.Request(address, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            text = error.read().decode("utf-8", "replace")
            raise ServerError(_message(text) or f"{address}: {error}") from None
        except urllib.error.URLError as error:
            raise ServerError(f"no server answers at {self.url}: {error.reason}") from None


def as_text(png: bytes) -> str:
    """A picture for the body of a job."""
    return base64.b64encode(png).decode()


def loras_of(text: str) -> list[dict[str, Any]]:
    """The LoRAs of `film:0.8, ink` for the body of a job; a weight that is left out is 1."""
    found = []
    for part in filter(None, map(str.strip, text.split(","))):
        name, _, scale = part.partition(":")
        try:
            found.append({"name": name.strip(), "scale": float(scale or 1)})
        except ValueError:
            raise ServerError(f"the weight of the LoRA {part!r} must be a number") from None
    return found


def _message(text: str) -> str | None:
    try:
        return json.loads(text)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return None
