"""Job: a request with everything decided for one model. What draws it meets no None."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from opensana.drawing.control_image import ControlImage
from opensana.drawing.init_image import InitImage
from opensana.errors import RequestError
from opensana.models.open import OpenModel
from opensana.models.resolution_bins import Size, nearest_bin
from opensana.request import (
    DRAWN_SEEDS,
    MOST_SPRINT_STEPS,
    Request,
    SolverName,
    seeds_from,
)


@dataclass(frozen=True)
class Job:
    """What is drawn; `make_job` decides it."""

    request: Request
    """With nothing left out: what a picture records, and draws it again."""
    size: Size
    """Width and height of the pictures."""
    drawn_size: Size
    """What is solved and decoded: `size`, or if binned the trained size nearest in shape."""
    latent_size: tuple[int, int]
    """Height and width of the latent."""
    steps: int
    guidance: float
    solver: SolverName
    seeds: tuple[int, ...]
    """One a picture."""
    strength: float
    """The share of the steps that is run; 1 starts from noise."""
    init_image: InitImage | None
    """At `size`."""
    control_image: ControlImage | None
    """At `drawn_size`."""
    provenance: Mapping[str, Any]
    """What a picture records of the images it was drawn from."""
    notes: tuple[str, ...]
    """What the user should know of how those were fitted."""

    @property
    def guided(self) -> bool:
        """Guidance of 1 and less is none, as published; that of Sprint is inside its network."""
        return self.guidance > 1 and self.solver != "scm"

    @property
    def cut_to(self) -> Size | None:
        """The size that decoded pictures are scaled and cut to, None where they have it."""
        return self.size if self.request.binned else None


def make_job(
    request: Request,
    model: OpenModel,
    init_image: InitImage | None = None,
    control_image: ControlImage | None = None,
) -> Job:
    """Everything that a request leaves to the model, decided; RequestError for what it cannot do.

    With an init image the size is that picture's, and strength depends on whether it has a mask.
    """
    compression, native = model.autoencoder.compression, model.native_size
    unit, defaults = compression * model.transformer.config.patch_size, model.info.defaults
    size, strength = (request.width or native, request.height or native), request.strength
    if init_image is not None:
        size = init_image.size_for(request.width, request.height, unit)
        strength = strength or init_image.default_strength
    steps = defaults.steps if request.steps is None else request.steps
    guidance = defaults.guidance if request.guidance is None else request.guidance
    seed = secrets.randbelow(DRAWN_SEEDS) if request.seed is None else request.seed
    decided = replace(
        request,
        width=size[0],
        height=size[1],
        strength=strength,
        steps=steps,
        guidance=guidance,
        seed=seed,
    )
    drawn_size = nearest_bin(*size, native=native) if request.binned else size
    for name, value in zip(("width", "height"), drawn_size, strict=True):
        if value % unit:
            low = max(value // unit, 1) * unit
            raise RequestError(
                f"{name} must be a multiple of {unit} for this model, got {value}; try {low}",
                field=name,
            )
    solver = _solver(decided, model.info.solver)

    parts = [part for part in (init_image, control_image) if part is not None]
    provenance = {key: value for part in parts for key, value in part.provenance.items()}
    notes: list[str] = []
    if init_image is not None:
        notes += init_image.resize_notes(*size, native=native)
        init_image = init_image.resized(*size)
    if control_image is not None:
        notes += control_image.resize_notes(*drawn_size)
        control_image = control_image.resized(*drawn_size)
    return Job(
        request=replace(decided, solver=solver),
        size=size,
        drawn_size=drawn_size,
        latent_size=(drawn_size[1] // compression, drawn_size[0] // compression),
        steps=steps,
        guidance=guidance,
        solver=solver,
        seeds=seeds_from(seed, request.images),
        strength=strength or 1.0,
        init_image=init_image,
        control_image=control_image,
        provenance=provenance,
        notes=tuple(notes),
    )


def _solver(request: Request, own: SolverName) -> SolverName:
    """The request's solver, or the model's `own`, which is scm for Sprint alone.

    A Sprint model was taught to jump to the picture, with guidance inside its network.
    """
    if own != "scm":
        if request.solver == "scm":
            message = "solver scm needs a Sprint model, and this is none; try flow_dpm"
            raise RequestError(message, field="solver")
        return request.solver or own
    if request.solver not in (None, "scm"):
        raise RequestError(
            f"a Sprint model draws with solver scm alone, got {request.solver!r}; leave solver out",
            field="solver",
        )
    if request.steps is not None and request.steps > MOST_SPRINT_STEPS:
        raise RequestError(
            f"a Sprint model was taught to draw in 1 to {MOST_SPRINT_STEPS} steps and gains "
            f"nothing from more, got {request.steps} steps; try 2",
            field="steps",
        )
    if request.negative_prompt.strip():
        raise RequestError(
            "a Sprint model takes no negative prompt, for it never draws an unguided half, "
            f"got {request.negative_prompt!r}; leave it out",
            field="negative_prompt",
        )
    if request.strength is not None:
        raise RequestError(
            "a Sprint model draws from text alone so far, got an image to start from; "
            "leave it out or try another model",
            field="image",
        )
    return own
