"""The API of A1111's web UI, /sdapi/v1/, which many programs speak.

Unlike there, progress, interrupt and skip are those of the caller's own jobs, and nothing that one
client sets changes what another draws.
"""

import asyncio
import io
import json
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response
from PIL import Image
from pydantic import BaseModel

from opensana.errors import DataError, RequestError
from opensana.pictures.decode import FORMATS, probe
from opensana.serve.api import a1111_lists as lists
from opensana.serve.api.a1111_answer import answer, headers
from opensana.serve.api.a1111_body import (
    CLIENT_NAMES,
    Img2Img,
    Txt2Img,
    asked,
    unsupported_settings,
)
from opensana.serve.api.a1111_progress import Previews, Tasks, progress
from opensana.serve.api.fields import client_names
from opensana.serve.api.formats import settings_of
from opensana.serve.api.infotext import parse
from opensana.serve.errors import ApiError
from opensana.serve.gate.keys import Caller, Key
from opensana.serve.jobs.order import picture_bytes
from opensana.serve.service import Service


class PngInfo(BaseModel):
    image: str


def router(service: Service) -> APIRouter:
    routes = APIRouter(prefix="/sdapi/v1")
    tasks, previews = Tasks(service), Previews(service)

    async def drawn(body: Txt2Img, caller: Key, http: HttpRequest) -> Response:
        with client_names(CLIENT_NAMES):
            wanted = await asyncio.to_thread(asked, body, service.capabilities())
            record = await service.submit(wanted.order, caller, kind="a1111")
        tasks.note(caller, body.force_task_id, record)
        # One that was interrupted answers with the pictures that are complete.
        record = await service.wait(record.id, caller, http)
        warnings = [*wanted.warnings, *record.notes]
        if record.state == "cancelled":
            warnings.append("interrupted")
        done = [one.index for one in record.images if one.done]
        pngs = [service.picture(record.id, index, caller) for index in done]
        # In ASCII: half of a surrogate pair, which may come back, is no UTF-8.
        content = json.dumps(answer(record, pngs, body, service.model, warnings))
        return Response(content, headers=headers(warnings), media_type="application/json")

    @routes.post("/txt2img")
    async def txt2img(body: Txt2Img, caller: Caller, http: HttpRequest) -> Response:
        """Pictures from a text."""
        return await drawn(body, caller, http)

    @routes.post("/img2img")
    async def img2img(body: Img2Img, caller: Caller, http: HttpRequest) -> Response:
        """Pictures from a text and a picture, all of it or where a mask is white."""
        return await drawn(body, caller, http)

    @routes.get("/progress")
    async def get_progress(
        caller: Caller, id_task: str | None = None, skip_current_image: bool = False
    ) -> JSONResponse:
        """How far the caller's job is, with a preview."""
        record = tasks.find(caller, id_task)
        busy = record is not None and not record.is_finished
        wanted = record is not None and busy and not skip_current_image
        preview = previews.newest(record, caller) if record is not None and wanted else None
        return JSONResponse(progress(record, preview))

    @routes.post("/interrupt")
    @routes.post("/skip")
    async def interrupt(caller: Caller, id_task: str | None = None) -> JSONResponse:
        """End the caller's job before its next step; its complete pictures are its answer."""
        record = tasks.find(caller, id_task)
        if record is not None:
            service.cancel(record.id, caller)
        return JSONResponse({})

    @routes.get("/options")
    async def get_options(caller: Caller) -> JSONResponse:
        """What clients read of A1111's settings."""
        return JSONResponse(lists.options(service.model))

    @routes.post("/options")
    async def set_options(body: dict[str, Any], caller: Caller) -> JSONResponse:
        """Nothing is changed; what would have to be is a warning, another model an error."""
        model = body.get("sd_model_checkpoint")
        if model not in (None, "", service.model):
            raise ApiError(
                404,
                f"sd_model_checkpoint must be {service.model!r} on this server, got {model!r}",
                code="model_not_found",
                param="sd_model_checkpoint",
            )
        warnings = list(unsupported_settings(body, service.model))
        return JSONResponse(None, headers=headers(warnings))

    @routes.post("/png-info")
    async def png_info(body: PngInfo, caller: Caller) -> JSONResponse:
        """The settings that a picture carries."""
        return JSONResponse(await asyncio.to_thread(_png_info, body.image))

    @routes.get("/samplers")
    async def samplers(caller: Caller) -> JSONResponse:
        """The solvers."""
        return JSONResponse(lists.samplers(service.capabilities()))

    @routes.get("/loras")
    async def loras(caller: Caller) -> JSONResponse:
        """The LoRAs that a prompt may name."""
        return JSONResponse(lists.loras(service.capabilities()))

    @routes.get("/memory")
    async def memory(caller: Caller) -> JSONResponse:
        """What the system has."""
        return JSONResponse(lists.memory())

    @routes.post("/refresh-loras")
    async def refresh_loras(caller: Caller) -> JSONResponse:
        """List anew what lies in the folder of LoRAs."""
        await service.refresh()
        return JSONResponse(None)

    _add_fixed(routes, "GET", "sd-models", lists.models(service.model))
    _add_fixed(routes, "GET", "schedulers", lists.SCHEDULERS)
    _add_fixed(routes, "GET", "upscalers", lists.UPSCALERS)
    _add_fixed(routes, "GET", "cmd-flags", lists.CMD_FLAGS)
    for name, nothing in lists.EMPTY.items():
        _add_fixed(routes, "GET", name, nothing)
    for name in lists.REFRESHED:
        _add_fixed(routes, "POST", name, None)
    return routes


def _add_fixed(routes: APIRouter, method: str, name: str, value: object) -> None:
    """An address that always answers the same."""

    async def fixed(caller: Caller) -> JSONResponse:
        return JSONResponse(value)

    summary = name.replace("-", " ").capitalize()
    routes.add_api_route(f"/{name}", fixed, methods=[method], name=name, summary=summary)


def _png_info(text: str) -> dict[str, Any]:
    data = picture_bytes(text, "image")
    try:
        probe(data)
    except DataError as error:
        raise RequestError(f"the image {error}", field="image") from None
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            settings = settings_of(image)
            items = {key: value for key, value in image.info.items() if isinstance(value, str)}
    except Exception as error:  # decoders raise anything on damaged files
        raise RequestError("the image is damaged; send another") from error
    items.pop("parameters", None)
    return {"info": settings, "items": items, "parameters": parse(settings) if settings else {}}
