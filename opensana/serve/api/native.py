"""The API of its own: jobs, their events and pictures, and what may be asked for."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar

from fastapi import APIRouter, Header, Query
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response
from pydantic import TypeAdapter
from sse_starlette.sse import EventSourceResponse
from starlette.datastructures import UploadFile

from opensana.request import Request
from opensana.serve.api.schema import BINARY, EVENTS, bodies, form
from opensana.serve.errors import ApiError
from opensana.serve.gate.keys import Caller
from opensana.serve.jobs.order import INPUT_NAMES, InputName, LoraChoice, Order, picture_bytes
from opensana.serve.service import Service

PING_SECONDS = 15


@dataclass(frozen=True)
class JobBody(Request):
    """A request with its pictures in base64."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid", "strict": True}

    image: str | None = None
    """The picture to start from: base64 or a data: URL of a PNG, JPEG or WebP file."""
    mask: str | None = None
    """Draw anew only where this picture is white."""
    control_image: str | None = None
    """The picture that the ControlNet follows."""
    control_scale: float = 1.0
    """How much the control image counts."""
    lora: list[LoraChoice] | None = None
    """LoRAs by their listed names."""


class PngResponse(Response):
    media_type = "image/png"


class FileBytes(Response):
    media_type = "application/octet-stream"


class EventStream(Response):
    """For the schema; the answer is sse-starlette's."""

    media_type = "text/event-stream"


BODY = TypeAdapter(JobBody)


BODIES = bodies(
    BODY.json_schema(),
    form({"request": {"type": "string"}} | dict.fromkeys(INPUT_NAMES, BINARY), ["request"]),
)


def read_body(data: bytes, **files: bytes) -> Order:
    """The order of a body; pydantic's ValidationError, RequestError."""
    body = BODY.validate_json(data)
    sent = {name: value for name in INPUT_NAMES if (value := getattr(body, name)) is not None}
    for name in files:
        if name in sent:
            raise ApiError(400, f"{name} came twice", code="invalid_value", param=name)
    pictures = {name: picture_bytes(text, name) for name, text in sent.items()} | files
    return Order(
        request=Request(**{field.name: getattr(body, field.name) for field in fields(Request)}),
        control_scale=body.control_scale,
        loras=tuple(body.lora or ()),
        **pictures,
    )


async def _order(http: HttpRequest) -> Order:
    """From JSON, or from a form with the JSON in `request` and pictures as files."""
    if not http.headers.get("content-type", "").startswith("multipart/form-data"):
        return read_body(await http.body())
    async with http.form(max_files=len(INPUT_NAMES), max_fields=1) as parts:
        files: dict[str, bytes] = {}
        data = b""
        for name, value in parts.multi_items():
            if name == "request":
                data = value.encode() if isinstance(value, str) else await value.read()
            elif name in INPUT_NAMES and isinstance(value, UploadFile):
                files[name] = await value.read()
            else:
                raise ApiError(400, f"unknown part {name}", code="unknown_parameter", param=name)
    return read_body(data, **files)


def router(service: Service) -> APIRouter:
    routes = APIRouter(prefix="/v1")

    @routes.post("/jobs", status_code=202, openapi_extra=BODIES)
    async def create(
        http: HttpRequest,
        caller: Caller,
        idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255)] = None,
    ) -> JSONResponse:
        """Begin a job; its place is in `Location`."""
        order = await _order(http)
        record = await service.submit(order, caller, idempotency_key=idempotency_key)
        return JSONResponse(record.view(), 202, {"location": f"/v1/jobs/{record.id}"})

    @routes.get("/jobs")
    async def list_jobs(
        caller: Caller,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
        before: Annotated[str | None, Query(max_length=64)] = None,
    ) -> JSONResponse:
        """Jobs of the caller's key, newest first."""
        found = service.jobs(caller, limit=limit + 1, before=before)
        data = [record.view() for record in found[:limit]]
        return JSONResponse({"object": "list", "data": data, "has_more": len(found) > limit})

    @routes.get("/jobs/{id}")
    async def get_job(id: str, caller: Caller) -> JSONResponse:
        return JSONResponse(service.job(id, caller).view())

    @routes.post("/jobs/{id}/cancel", responses={202: {}})
    async def cancel(id: str, caller: Caller) -> JSONResponse:
        """End a job before its next step."""
        record = service.cancel(id, caller)
        return JSONResponse(record.view(), 200 if record.is_finished else 202)

    @routes.delete("/jobs/{id}", responses={202: {}, 204: {}})
    async def delete(id: str, caller: Caller) -> Response:
        """Cancel a job, or delete one that is finished, with its pictures."""
        if not service.job(id, caller).is_finished:
            return JSONResponse(service.cancel(id, caller).view(), 202)
        service.delete(id, caller)
        return Response(status_code=204)

    @routes.get("/jobs/{id}/images/{index}", response_class=PngResponse)
    async def image(id: str, index: int, caller: Caller) -> Response:
        return PngResponse(service.picture(id, index, caller))

    @routes.get("/jobs/{id}/inputs/{name}", response_class=FileBytes)
    async def input_picture(id: str, name: InputName, caller: Caller) -> Response:
        return FileBytes(service.input(id, name, caller))

    @routes.get("/jobs/{id}/events", response_class=EventStream, responses=EVENTS)
    async def events(
        id: str,
        caller: Caller,
        previews: bool = False,
        last_event_id: Annotated[str | None, Query(max_length=64)] = None,
        resumed: Annotated[str | None, Header(alias="last-event-id", max_length=64)] = None,
    ) -> EventSourceResponse:
        """What happens to a job, as server-sent events."""
        service.job(id, caller)  # 404 comes before the stream
        after = resumed or last_event_id
        found = service.events(id, caller, after=after, previews=previews)
        return EventSourceResponse(_sent(found), ping=PING_SECONDS)

    @routes.get("/capabilities")
    async def capabilities(caller: Caller) -> JSONResponse:
        """The model, its defaults, and the limits of this server."""
        return JSONResponse(service.capabilities())

    return routes


async def _sent(events: AsyncIterator[Any]) -> AsyncIterator[dict[str, str]]:
    async for event in events:
        yield {"id": event.id, "event": event.type, "data": json.dumps(event.data)}
