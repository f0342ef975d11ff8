"""Request: what a user may ask for, validated once.

One frozen dataclass is the command line's flags, the HTTP body and the pipeline's argument.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

from opensana.errors import RequestError, near

SolverName = Literal["flow_dpm", "euler", "scm"]

SIZE_STEP = 32
SMALLEST_SIZE = 32
LARGEST_SIZE = 8192
MOST_STEPS = 1000
MOST_SPRINT_STEPS = 4
MOST_GUIDANCE = 100.0
MOST_IMAGES = 64
LARGEST_SEED = 2**63 - 1
DRAWN_SEEDS = 2**32  # a seed drawn for the user stays short enough to be typed again


@dataclass(frozen=True)
class Request:
    """Pictures to draw."""

    # FastAPI would otherwise ignore unknown keys of a body.
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    prompt: str
    """What the picture should show."""
    negative_prompt: str = ""
    """What the picture should avoid; it counts only when guidance is not 1. Sprint models take
    none."""
    width: int | None = None
    """Width in pixels, a multiple of 32; left out, the size the model was trained for."""
    height: int | None = None
    """Height in pixels, a multiple of 32; left out, the size the model was trained for."""
    steps: int | None = None
    """Solver steps: more are slower and more exact. flow_dpm wants 14 to 20, euler 28 to 50, scm 1
    to 4; left out, what the model recommends. A model that brings a distilled transformer draws 1
    to 4 steps with that, unless solver, negative prompt or an image forbid."""
    guidance: float | None = None
    """How strongly the picture follows the prompt; 1 turns guidance off and halves the work. Sprint
    models have learnt 4 to 5. Left out, what the model recommends."""
    seed: int | None = None
    """Decides the noise: the same seed gives the same picture. Left out, one is drawn at random."""
    images: int = 1
    """How many pictures to draw, with the seeds seed, seed + 1, ..."""
    solver: SolverName | None = None
    """How the flow is followed from noise to picture; left out, what the model's folder names:
    flow_dpm for most, scm for Sprint models, which take no other."""
    strength: float | None = None
    """How far from a given picture the new one may be, the share of the steps that is run: above
    0, at most 1; left out, 0.6, and 1 with a mask."""
    binned: bool = False
    """Draw at the size nearest in shape that a published model was trained at, then scale and cut
    the picture to width and height, which may be any; as diffusers does unless told otherwise."""

    def __post_init__(self) -> None:
        _check_text("prompt", self.prompt)
        _check_text("negative_prompt", self.negative_prompt)
        if not self.prompt.strip():
            raise RequestError(
                f"prompt is empty (got {self.prompt!r}); say what the picture should show",
                field="prompt",
            )
        step = 1 if self.binned else SIZE_STEP
        _check_size("width", self.width, step)
        _check_size("height", self.height, step)
        if self.steps is not None:
            _check_whole("steps", self.steps, 1, MOST_STEPS)
        if self.guidance is not None:
            _check_guidance(self.guidance)
        if self.seed is not None:
            _check_whole(
                "seed", self.seed, 0, LARGEST_SEED, tip=" or leave it out for a random one"
            )
        _check_whole("images", self.images, 1, MOST_IMAGES)
        if self.solver is not None:
            _check_solver(self.solver)
        if self.strength is not None:
            _check_strength(self.strength)


def as_request(prompt: str | Request, fields: Mapping[str, Any]) -> Request:
    """A request with some of its fields changed, or one for a prompt."""
    if isinstance(prompt, Request):
        return replace(prompt, **fields) if fields else prompt
    return Request(prompt, **fields)


def seeds_from(first: int, images: int) -> tuple[int, ...]:
    """One seed a picture; after the largest comes 0."""
    return tuple((first + index) % (LARGEST_SEED + 1) for index in range(images))


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise RequestError(f"{name} must be text, got {value!r}", field=name)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestError(
            f"{name} is not valid Unicode at character {error.start + 1} (half of a surrogate "
            "pair); remove that character",
            field=name,
        ) from None


def _check_whole(name: str, value: object, least: int, most: int, *, tip: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        message = f"{name} must be a whole number, got {value!r}; try a number{tip}"
        raise RequestError(message, field=name)
    if not least <= value <= most:
        closest = min(max(value, least), most)
        message = f"{name} must be {least} to {most}, got {value}; try {closest}{tip}"
        raise RequestError(message, field=name)


def _check_size(name: str, value: int | None, step: int) -> None:
    if value is None:
        return
    _check_whole(name, value, SMALLEST_SIZE, LARGEST_SIZE)
    if value % step:
        below = value - value % step
        raise RequestError(
            f"{name} must be a multiple of {step}, got {value}; try {below} or {below + step}",
            field=name,
        )


def _check_guidance(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        message = f"guidance must be a number, got {value!r}; try 4.5"
        raise RequestError(message, field="guidance")
    if not (math.isfinite(value) and 0 <= value <= MOST_GUIDANCE):
        message = f"guidance must be 0 to {MOST_GUIDANCE:g}, got {value}; try 4.5"
        raise RequestError(message, field="guidance")


def _check_strength(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        message = f"strength must be a number, got {value!r}; try 0.6"
        raise RequestError(message, field="strength")
    if not 0 < value <= 1:
        message = f"strength must be above 0 and at most 1, got {value}; try 0.6"
        raise RequestError(message, field="strength")


def _check_solver(value: object) -> None:
    names = get_args(SolverName)
    if value not in names:
        hint = near(value, names) if isinstance(value, str) else ""
        message = f"solver must be {' or '.join(names)}, got {value!r}{hint}"
        raise RequestError(message, field="solver")
