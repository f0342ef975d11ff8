"""Limits: what one request may ask for, how much may wait, how often a key may ask."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from opensana.errors import ConfigError
from opensana.request import MOST_GUIDANCE, SIZE_STEP, SMALLEST_SIZE, Request
from opensana.serve.errors import ApiError
from opensana.serve.painter import Plan


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Of one server."""

    largest_side: int = 2048
    most_pixels: int = 2048 * 2048
    most_steps: int = 200
    most_images: int = 16
    prompt_characters: int = 32_000
    body_bytes: int = 64 * 2**20
    queue: int = 64 * 256 * 256 * 20
    """Pixels x steps that may wait or run, of all keys."""
    queue_of_key: int | None = None
    """Of one key; None is as much as of all."""
    rate: float | None = None
    """Requests a minute that one key may send."""
    keep_seconds: float = 7 * 86400.0
    keep_bytes: int = 2 * 2**30

    def __post_init__(self) -> None:
        if self.rate is not None and not self.rate > 0:
            raise ConfigError(f"rate must be above 0, got {self.rate}; leave it out for no limit")

    def check_request(self, request: Request) -> None:
        """ApiError for what is too much for this server."""
        for name in ("prompt", "negative_prompt"):
            length = len(getattr(request, name))
            if length > self.prompt_characters:
                most = self.prompt_characters
                raise _too_much(name, f"{name} has {length} characters; the most is {most}")
        if request.images > self.most_images:
            message = f"images must be 1 to {self.most_images} here, got {request.images}"
            raise _too_much("images", message)
        if request.steps is not None and request.steps > self.most_steps:
            message = f"steps must be 1 to {self.most_steps} here, got {request.steps}"
            raise _too_much("steps", message)
        for name in ("width", "height"):
            value = getattr(request, name)
            if value is not None and value > self.largest_side:
                most = self.largest_side
                raise _too_much(name, f"{name} must be at most {most} here, got {value}")

    def check_plan(self, plan: Plan) -> None:
        """As `check_request`, for what is known once everything is decided."""
        width, height = plan.size
        if max(width, height) > self.largest_side or width * height > self.most_pixels:
            raise _too_much(
                "width",
                f"{width} x {height} pixels are too many here; the most is {self.most_pixels} "
                f"pixels with sides of at most {self.largest_side}",
            )

    def view(self) -> dict[str, object]:
        """Their JSON in the capabilities."""
        side = {"min": SMALLEST_SIZE, "max": self.largest_side}
        return {
            "width": side,
            "height": side,
            "size_step": SIZE_STEP,
            "pixels": self.most_pixels,
            "steps": {"min": 1, "max": self.most_steps},
            "guidance": {"min": 0, "max": MOST_GUIDANCE},
            "images": {"min": 1, "max": self.most_images},
            "seed": {"min": 0, "max": 2**63 - 1},
            "strength": {"min": 0, "max": 1},
            "prompt_characters": self.prompt_characters,
            "body_bytes": self.body_bytes,
        }


def _too_much(name: str, message: str) -> ApiError:
    return ApiError(400, message, code="over_limit", param=name)


class Rates:
    """At most `rate` requests of each key in any minute; for one event loop.

    A rate below 1 is one request in a longer time.
    """

    def __init__(self, rate: float | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._clock = rate, clock
        self._most = max(1, int(rate or 1))
        self._seconds = 60 * self._most / (rate or 1)
        self._taken: dict[str, deque[float]] = {}

    def take(self, key: str) -> None:
        """One request; ApiError 429 when a key has none left."""
        if self._rate is None:
            return
        now = self._clock()
        taken = self._taken.setdefault(key, deque(maxlen=self._most))
        if len(taken) == self._most and (wait := taken[0] + self._seconds - now) > 0:
            message = f"this key may send {self._rate:g} requests a minute"
            raise ApiError(429, message, code="rate_limited", retry_after=wait)
        taken.append(now)
