"""JobRecord: a snapshot of a job, as the store keeps it and as clients see it."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from opensana.request import Request
from opensana.serve.jobs.order import INPUT_NAMES, InputName, LoraChoice

State = Literal["queued", "running", "completed", "failed", "cancelled"]
FINISHED: tuple[State, ...] = ("completed", "failed", "cancelled")


@dataclass(frozen=True)
class ImageRecord:
    """One picture of a job."""

    index: int
    seed: int
    width: int
    height: int
    steps: int
    step: int = 0
    """How many of the steps are done."""
    done: bool = False
    """Drawn, and on disk."""


@dataclass(frozen=True)
class JobError:
    """Why a job failed."""

    message: str
    code: str
    """nan, out_of_memory, interrupted, invalid or failed."""

    def view(self) -> dict[str, Any]:
        return {"message": self.message, "type": "server_error", "param": None, "code": self.code}


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """A job as it is at one moment; times are Unix seconds."""

    id: str
    key: str
    """The name of the key that owns it."""
    kind: str
    """The API that made it: native, openai or a1111."""
    state: State
    created: float
    started: float | None = None
    finished: float | None = None
    request: Request
    """With everything decided, the seed too."""
    images: tuple[ImageRecord, ...]
    inputs: tuple[InputName, ...] = ()
    control_scale: float = 1.0
    loras: tuple[LoraChoice, ...] = ()
    notes: tuple[str, ...] = ()
    error: JobError | None = None
    attempts: int = 0
    """How often it was begun: more than once after a server was killed."""
    queue_position: int | None = None
    """1 is next; None unless it is queued."""
    eta: float | None = None
    """Seconds to its end, from measured steps."""

    @property
    def is_finished(self) -> bool:
        return self.state in FINISHED

    @property
    def progress(self) -> float:
        """The share of its steps that is done."""
        return sum(one.step for one in self.images) / sum(one.steps for one in self.images)

    def with_image(self, index: int, **changes: Any) -> "JobRecord":
        """The record with one of its pictures changed."""
        images = [replace(one, **changes) if one.index == index else one for one in self.images]
        return replace(self, images=tuple(images))

    def view(self) -> dict[str, Any]:
        """The JSON that clients get."""
        return {
            "id": self.id,
            "object": "job",
            "status": self.state,
            "kind": self.kind,
            "created_at": self.created,
            "started_at": self.started,
            "finished_at": self.finished,
            "queue_position": self.queue_position,
            "eta_s": None if self.eta is None else round(self.eta, 2),
            "progress": round(self.progress, 4),
            "request": asdict(self.request),
            "inputs": {name: name in self.inputs for name in INPUT_NAMES}
            | {"control_scale": self.control_scale},
            "lora": [asdict(one) for one in self.loras],
            "images": [self.image_view(one) for one in self.images],
            "notes": list(self.notes),
            "error": self.error and self.error.view(),
            "events": f"/v1/jobs/{self.id}/events",
        }

    def image_view(self, image: ImageRecord) -> dict[str, Any]:
        status = "completed" if image.done else "drawing" if image.step else "waiting"
        return {
            "index": image.index,
            "seed": image.seed,
            "width": image.width,
            "height": image.height,
            "status": status,
            "step": image.step,
            "steps": image.steps,
            "url": f"/v1/jobs/{self.id}/images/{image.index}" if image.done else None,
        }
