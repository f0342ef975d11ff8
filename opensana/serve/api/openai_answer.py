"""What OpenAI's image API answers: items of a response, and the events of a stream.

Strict clients know only a few sizes, so events say `auto`; the true width and height stand beside
it, with the seed that draws the picture again. Tokens are not counted: `usage` is zero.
"""

import base64
import io
import json
import time
from typing import Any, Literal

from PIL import Image

from opensana.serve.api.formats import encoded, save
from opensana.serve.api.openai_body import Generation
from opensana.serve.jobs.job import ImageRecord, JobRecord

Kind = Literal["image_generation", "image_edit"]
SIZES = ("1024x1024", "1024x1536", "1536x1024")
"""Those that every client knows."""
NO_USAGE = {
    "input_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
    "output_tokens": 0,
    "total_tokens": 0,
}


def response(record: JobRecord, items: list[dict[str, Any]], body: Generation) -> dict[str, Any]:
    """The body of an answer that is no stream."""
    image = record.images[0]
    size = f"{image.width}x{image.height}"
    return {
        "created": int(record.created),
        "background": "opaque",
        "output_format": body.output_format,
        **({"size": size} if size in SIZES else {}),
        "data": items,
        **_notes(record),
    }


def item(record: JobRecord, image: ImageRecord, **content: str) -> dict[str, Any]:
    """One of `data`, with `b64_json` or `url` as its content."""
    return content | {"id": picture_id(record, image), **_facts(image)}


def picture_id(record: JobRecord, image: ImageRecord) -> str:
    """Under which `GET /v1/images/{id}/content` finds it."""
    return f"{record.id}-{image.index}"


def encoded_text(png: bytes, body: Generation) -> str:
    """A drawn picture in the format that was asked for, as base64."""
    return _base64(encoded(png, body.output_format, body.output_compression))


def partial_text(preview: str, image: ImageRecord, body: Generation) -> str:
    """A preview, base64 of a small PNG, at the size of the picture and in its format."""
    with Image.open(io.BytesIO(base64.b64decode(preview))) as small:
        large = small.convert("RGB").resize((image.width, image.height), Image.Resampling.BICUBIC)
    return _base64(save(large, body.output_format, body.output_compression))


def partial(kind: Kind, image: ImageRecord, body: Generation, number: int, text: str) -> dict:
    """The event of a partial picture, `number` from 0."""
    return _event(f"{kind}.partial_image", image, body, text) | {"partial_image_index": number}


def completed(kind: Kind, record: JobRecord, image: ImageRecord, body: Generation, text: str):
    """The event of a picture that is drawn."""
    event = _event(f"{kind}.completed", image, body, text)
    return event | {"id": picture_id(record, image), "usage": NO_USAGE} | _notes(record)


def sent(event: dict[str, Any]) -> dict[str, str]:
    """An event for sse-starlette, its name beside its data."""
    return {"event": event["type"], "data": json.dumps(event)}


class Partials:
    """Which previews become partial pictures: of each picture `count`, in equal distances."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._taken: dict[int, int] = {}

    def take(self, image: int, step: int, steps: int) -> int | None:
        """The number of the partial picture that is due after a step; None if none is."""
        number = self._taken.get(image, 0)
        if number == self._count or step * (self._count + 1) < steps * (number + 1):
            return None
        self._taken[image] = number + 1
        return number


def _event(type: str, image: ImageRecord, body: Generation, text: str) -> dict[str, Any]:
    return {
        "type": type,
        "b64_json": text,
        "created_at": int(time.time()),
        "size": "auto",
        "quality": "auto",
        "background": "opaque",
        "output_format": body.output_format,
        "image_index": image.index,
        **_facts(image),
    }


def _facts(image: ImageRecord) -> dict[str, int]:
    return {"seed": image.seed, "width": image.width, "height": image.height}


def _notes(record: JobRecord) -> dict[str, Any]:
    return {"notes": list(record.notes)} if record.notes else {}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
