"""OpenAI's image API: /v1/images/generations and edits, the pictures' content, /v1/models."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Query
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from sse_starlette.sse import EventSourceResponse
from starlette.datastructures import UploadFile

from opensana.serve.api.fields import client_names
from opensana.serve.api.formats import MEDIA_TYPES, QUALITY, Format, encoded
from opensana.serve.api.openai_answer import (
    Kind,
    Partials,
    completed,
    encoded_text,
    item,
    partial,
    partial_text,
    picture_id,
    response,
    sent,
)
from opensana.serve.api.openai_body import CLIENT_NAMES, Edit, Generation, form_body
from opensana.serve.api.schema import BINARY, EVENTS, bodies, form
from opensana.serve.errors import ApiError, error_body, from_validation
from opensana.serve.gate.keys import Caller, Key
from opensana.serve.jobs.job import ImageRecord, JobRecord
from opensana.serve.service import Service

PING_SECONDS = 15
MOST_PARTS = 64
TEXT = {"type": "string"}
EDIT_BODIES = bodies(
    Edit.model_json_schema(),
    form(
        dict.fromkeys((name for name in Edit.model_fields if name not in ("images", "lora")), TEXT)
        | {"lora[][name]": TEXT, "lora[][scale]": TEXT}
        | dict.fromkeys(("image", "image[]", "mask"), BINARY),
        ["prompt"],
    ),
)


def router(service: Service) -> APIRouter:
    routes = APIRouter(prefix="/v1")
    started = int(time.time())

    @routes.post("/images/generations", responses=EVENTS)
    async def generations(body: Generation, caller: Caller, http: HttpRequest) -> Response:
        """Pictures from a text."""
        return await _drawn(service, body, caller, http, "image_generation")

    @routes.post("/images/edits", openapi_extra=EDIT_BODIES, responses=EVENTS)
    async def edits(caller: Caller, http: HttpRequest) -> Response:
        """Pictures from a text and a picture, all of it or where a mask is transparent."""
        return await _drawn(service, await _read_edit(http), caller, http, "image_edit")

    @routes.get(
        "/images/{id}/content",
        response_class=Response,
        responses={200: {"content": {kind: {} for kind in MEDIA_TYPES.values()}}},
    )
    async def content(
        id: str,
        caller: Caller,
        output_format: Format = "png",
        output_compression: Annotated[int, Query(ge=0, le=100)] = QUALITY,
    ) -> Response:
        """The file of a picture."""
        job, _, index = id.rpartition("-")
        if not (index.isascii() and index.isdecimal() and len(index) < 4):
            raise ApiError(404, "there is no such picture", code="no_such_picture")
        png = service.picture(job, int(index), caller)
        data = await asyncio.to_thread(encoded, png, output_format, output_compression)
        return Response(data, media_type=MEDIA_TYPES[output_format])

    def model() -> dict[str, Any]:
        return {
            "id": service.model,
            "object": "model",
            "created": started,
            "owned_by": "opensana",
        }

    @routes.get("/models")
    async def models(caller: Caller) -> JSONResponse:
        """The model of this server."""
        return JSONResponse({"object": "list", "data": [model()]})

    @routes.get("/models/{id:path}")
    async def one_model(id: str, caller: Caller) -> JSONResponse:
        """A model by its name."""
        if id != service.model:
            raise ApiError(404, f"there is no model {id!r} here", code="model_not_found")
        return JSONResponse(model())

    return routes


async def _read_edit(http: HttpRequest) -> Edit:
    """The body of an edit, a form or JSON."""
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if kind != "multipart/form-data":
            return Edit.model_validate_json(await http.body(), strict=True)
        parts: dict[str, list[str | bytes]] = {}
        async with http.form(max_files=MOST_PARTS, max_fields=MOST_PARTS) as sent_parts:
            for name, value in sent_parts.multi_items():
                content = await value.read() if isinstance(value, UploadFile) else value
                parts.setdefault(name, []).append(content)
        # All that a form has are texts: "4" is a number there.
        return Edit.model_validate(form_body(parts), strict=False)
    except ValidationError as error:
        raise from_validation(error.errors()) from None


async def _drawn(
    service: Service, body: Generation, caller: Key, http: HttpRequest, kind: Kind
) -> Response:
    with client_names(CLIENT_NAMES):
        order = body.check(service.model).order()
        if body.stream:
            record = await service.submit(order, caller, kind="openai")
            events = _events(service, record, body, caller, kind)
            return EventSourceResponse(events, ping=PING_SECONDS)
        record = await service.run(order, caller, http, kind="openai")
    items: list[dict[str, Any]] = []
    for image in record.images:
        if body.response_format == "url":
            items.append(item(record, image, url=_url(record, image, body, http)))
        else:
            png = service.picture(record.id, image.index, caller)
            text = await asyncio.to_thread(encoded_text, png, body)
            items.append(item(record, image, b64_json=text))
    return JSONResponse(response(record, items, body))


async def _events(
    service: Service, record: JobRecord, body: Generation, caller: Key, kind: Kind
) -> AsyncIterator[dict[str, str]]:
    """Partial pictures and pictures as they come; a reader that leaves cancels the job."""
    partials, waiting = Partials(body.partial_images or 0), set(range(len(record.images)))
    found = service.events(record.id, caller, previews=bool(body.partial_images))
    try:
        async with aclosing(found):
            async for event in found:
                if event.type == "preview":
                    index = event.data["image"]
                    number = partials.take(index, event.data["step"], event.data["steps"])
                    if number is not None and index in waiting:
                        image, preview = record.images[index], event.data["b64_json"]
                        text = await asyncio.to_thread(partial_text, preview, image, body)
                        yield sent(partial(kind, image, body, number, text))
                for index in sorted(waiting & _done(event.data)):
                    waiting.remove(index)
                    png = service.picture(record.id, index, caller)
                    text = await asyncio.to_thread(encoded_text, png, body)
                    yield sent(completed(kind, record, record.images[index], body, text))
                if event.type in ("failed", "cancelled"):
                    yield sent({"type": "error"} | _failure(event.data))
    finally:
        service.cancel(record.id, caller)


def _done(data: dict[str, Any]) -> set[int]:
    """The pictures that are drawn, as far as an event tells."""
    if data["type"] == "image":
        return {data["image"]}
    images = data["job"]["images"] if "job" in data else []
    return {image["index"] for image in images if image["status"] == "completed"}


def _failure(data: dict[str, Any]) -> dict[str, Any]:
    return {"error": data.get("error") or error_body(503, "cancelled", "cancelled", None)["error"]}


def _url(record: JobRecord, image: ImageRecord, body: Generation, http: HttpRequest) -> str:
    """Where the picture is, for as long as the server keeps it."""
    url = f"{http.base_url}v1/images/{picture_id(record, image)}/content"
    if body.output_format == "png":
        return url
    query = {"output_format": body.output_format, "output_compression": body.output_compression}
    return f"{url}?{urlencode(query)}"
