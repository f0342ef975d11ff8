"""The one shape of an error, OpenAI's, whatever went wrong and wherever."""

import json
import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

from opensana.errors import OpensanaError, RequestError
from opensana.serve.api.schema import inlined
from opensana.serve.logs import log_failure

CLIENT_LEFT = 499
"""The status, in figures and in the log, of a request whose client left before its answer."""
LONGEST_MESSAGE = 2000
TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class Failure(BaseModel):
    """What went wrong."""

    message: str
    """One line."""
    type: str
    """invalid_request_error, authentication_error, permission_error, rate_limit_error or
    server_error."""
    param: str | None
    """The field that it is about."""
    code: str | None
    """A short name that does not change."""


class ErrorBody(BaseModel):
    """The JSON of every error."""

    error: Failure


# In JSON also where a route answers with something else.
_CONTENT = {"application/json": {"schema": inlined(ErrorBody.model_json_schema())}}
RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"content": _CONTENT, "description": "What was asked for cannot be done"},
    "5XX": {"content": _CONTENT, "description": "The server is full, stops, or failed"},
}
"""For the schema."""


class ApiError(Exception):
    """An answer that is an error."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message = status, message[:LONGEST_MESSAGE]
        self.code, self.param = code, param and param[:LONGEST_MESSAGE]
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["retry-after"] = str(max(1, math.ceil(retry_after)))


def error_body(status: int, message: str, code: str | None, param: str | None) -> dict[str, Any]:
    """The JSON of an error."""
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def answer(error: ApiError, path: str) -> Response:
    """An error as an answer to a request for `path`."""
    body = error_body(error.status, error.message, error.code, error.param)
    if path.startswith("/sdapi/"):  # what A1111's clients read
        body |= {"detail": error.message, "body": "", "errors": error.message}
    # In ASCII: half of a surrogate pair, which may come back, is no UTF-8.
    return Response(json.dumps(body), error.status, error.headers, "application/json")


def add_handlers(app: FastAPI) -> None:
    """Every error that a route can raise, in that shape."""

    def handle(kind: Any, convert: Any) -> None:
        async def handler(http: Request, error: Exception) -> Response:
            return answer(convert(error), http.url.path)

        app.add_exception_handler(kind, handler)

    handle(ApiError, lambda error: error)
    handle(RequestError, from_request)
    handle(OpensanaError, lambda error: ApiError(400, str(error), code="invalid_value"))
    handle(RequestValidationError, lambda error: from_validation(error.errors()))
    handle(ValidationError, lambda error: from_validation(error.errors()))
    handle(HTTPException, _from_http)


def from_request(error: RequestError) -> ApiError:
    """What cannot be drawn, with its field."""
    return ApiError(400, str(error), code="invalid_value", param=error.field)


def from_validation(errors: Any) -> ApiError:
    """The first of pydantic's complaints, as one line."""
    first = errors[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, RequestError):
        return from_request(cause)
    where = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
    param = ".".join(where) or None
    if first["type"] == "extra_forbidden" or first["type"] == "unexpected_keyword_argument":
        return ApiError(400, f"unknown key {param}", code="unknown_parameter", param=param)
    message = first["msg"].removeprefix("Value error, ")
    if param is not None and not message.startswith(param):
        message = f"{param}: {message}"
    return ApiError(400, message, code="invalid_value", param=param)


def _from_http(error: HTTPException) -> ApiError:
    message = {
        404: "there is nothing at this address",
        405: "this address does not take that method",
    }.get(error.status_code, str(error.detail or HTTPStatus(error.status_code).phrase))
    return ApiError(error.status_code, message, headers=error.headers)


def unexpected(error: Exception) -> ApiError:
    """For what nobody foresaw; the log gets the rest."""
    log_failure(error)
    return ApiError(500, "the server failed; its log says more", code="internal")
