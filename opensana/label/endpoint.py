"""A VLM behind an OpenAI-compatible `/chat/completions` (vLLM, SGLang, hosted).

Requests fail in three ways. Transient errors (5xx, 408, 429, a broken connection, a timeout, a
malformed answer) are retried with exponential backoff. Errors of the picture (400, 413, 415, 422)
fail this picture. Everything else (a wrong key, address or model) ends the run.
"""

import base64
import io
import json
import os
import random
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass

from PIL import Image

from opensana.errors import ConfigError, OpensanaError
from opensana.label.captioner import (
    Answers,
    CaptionSource,
    Failure,
    Pictures,
    Settings,
    shrunk,
    single_line,
)
from opensana.label.transport import Pace, Reply, Unreachable, may_carry_key, post, retry_after
from opensana.workers.threads import in_flight

TRANSIENT = frozenset({408, 409, 425, 429})
"""Beside the status codes from 500 on."""
REFUSED_PICTURE = frozenset({400, 413, 415, 422})
TRIES = 8
NONSENSE_TRIES = 3
"""Malformed answers cost money, and greedy decoding may well repeat them."""
FEWEST_BARREN = 4
"""An endpoint counts as down after at least this many failed pictures in a row."""
JPEG_QUALITY = 92


@dataclass(frozen=True)
class Patience:
    """Seconds of exponential backoff with jitter: doubled up to `longest`, times 0.5..1."""

    first: float = 1.0
    longest: float = 60.0
    longest_asked: float = 600.0
    """The maximum of a server's Retry-After."""

    def after(self, tries: int) -> float:
        return min(self.longest, self.first * 2 ** (tries - 1)) * random.uniform(0.5, 1)


@dataclass(frozen=True)
class Trouble:
    """A failure that may be retried."""

    reason: str
    tries: int = TRIES
    wait: float | None = None


class EndpointCaptioner:
    """Captions pictures over HTTP, with `settings.batch` concurrent requests."""

    def __init__(
        self, url: str, model: str, settings: Settings, *, patience: Patience | None = None
    ) -> None:
        self.url = url.rstrip("/") + "/chat/completions"
        self.model, self.settings = model, settings
        # Without the address: a server that moves continues the same labels.
        self.source = CaptionSource(model, "", settings.prompt, settings.recorded)
        self.patience = patience or Patience()
        self.pace = Pace(settings.requests_per_minute)
        self._barren = 0
        self._key = read_key(settings.key_variable) if may_carry_key(self.url) else ""

    def __call__(self, pictures: Pictures) -> Answers:
        return self.ask((key, image, self.settings.prompt) for key, image in pictures)

    def ask(self, questions: Iterable[tuple[str, Image.Image, str]]) -> Answers:
        """Answers by key to words of each picture's own, in place of the settings' prompt."""
        requests = ((key, self._request(image, words)) for key, image, words in questions)
        return in_flight(self._caption, requests, at_once=self.settings.batch)

    def _caption(self, request: tuple[str, bytes]) -> tuple[str, str | Failure]:
        key, body = request
        tries = 0
        while True:
            tries += 1
            answer = self._ask(body)
            if not isinstance(answer, Trouble):
                self._barren = 0
                return key, answer
            if tries >= answer.tries:
                return key, self._given_up(f"{answer.reason}, {tries} times")
            if answer.wait is not None:
                self.pace.pause(min(answer.wait, self.patience.longest_asked))
            else:
                time.sleep(self.patience.after(tries))

    def _given_up(self, reason: str) -> Failure:
        """The failure of one picture; an error after a full batch of failures in a row."""
        self._barren += 1
        if self._barren >= max(self.settings.batch, FEWEST_BARREN):
            raise OpensanaError(
                f"{self.url} gave nothing for {self._barren} pictures in a row, the last with: "
                f"{reason}; the same command goes on"
            )
        return Failure(reason)

    def _ask(self, body: bytes) -> str | Failure | Trouble:
        """One request."""
        self.pace.wait()
        try:
            headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
            reply = post(self.url, body, headers, timeout=self.settings.timeout)
        except Unreachable as error:
            return Trouble(self._without_key(str(error)))
        if reply.status == 200:
            return caption_of(reply)
        words = " ".join(reply.body[:2000].decode("utf-8", "replace").split())
        reason = f"status {reply.status}: {self._without_key(words)[:200]}"
        if reply.status in TRANSIENT or reply.status >= 500:
            return Trouble(reason, wait=retry_after(reply.headers))
        if reply.status in REFUSED_PICTURE:
            return Failure(reason)
        hint = ""
        if reply.status in (401, 403):
            hint = f"; is ${self.settings.key_variable} set to its key, and the address https?"
        raise ConfigError(f"{self.url} answered {self.model!r} with {reason}{hint}")

    def _request(self, image: Image.Image, prompt: str) -> bytes:
        """The JSON body; the picture is re-encoded, so no metadata leaves."""
        file = io.BytesIO()
        shrunk(image, self.settings.largest_side).save(file, "JPEG", quality=JPEG_QUALITY)
        address = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
        picture = {"type": "image_url", "image_url": {"url": address}}
        words = {"type": "text", "text": prompt}
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": [picture, words]}],
            "max_tokens": self.settings.max_tokens,
            "temperature": 0,
        }
        return json.dumps(body).encode()

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def caption_of(reply: Reply) -> str | Failure | Trouble:
    """The text of a chat completion; Trouble if it is malformed or unusable."""
    try:
        text = json.loads(reply.body)["choices"][0]["message"]["content"]
    except (ValueError, RecursionError, KeyError, IndexError, TypeError):
        return Trouble("the answer is not a chat completion", NONSENSE_TRIES)
    if not isinstance(text, str):
        return Trouble("the answer holds no text", NONSENSE_TRIES)
    caption = single_line(text)
    return caption if isinstance(caption, str) else Trouble(caption.reason, NONSENSE_TRIES)


def read_key(variable: str) -> str:
    """The API key in an environment variable, or ""."""
    key = os.environ.get(variable, "").strip()
    if key and not re.fullmatch(r"[\x21-\x7e]+", key):
        raise ConfigError(f"${variable} holds characters that no key has")
    return key
