"""The schema of bodies that a route reads itself, as JSON or as a form."""

from collections.abc import Iterable, Mapping
from typing import Any

BINARY = {"type": "string", "format": "binary"}
EVENT = {
    "type": "object",
    "properties": {name: {"type": "string"} for name in ("id", "event", "data")},
}
EVENTS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": EVENT}}}
}
"""A route's `responses`, where it may answer with server-sent events."""


def bodies(schema: Mapping[str, Any], form: Mapping[str, Any]) -> dict[str, Any]:
    """A route's `openapi_extra`: one of both must come."""
    content = {
        "application/json": {"schema": inlined(schema)},
        "multipart/form-data": {"schema": form},
    }
    return {"requestBody": {"required": True, "content": content}}


def form(fields: Mapping[str, Any], required: Iterable[str]) -> dict[str, Any]:
    """A form of no more than these fields."""
    return {
        "type": "object",
        "properties": dict(fields),
        "required": list(required),
        "additionalProperties": False,
    }


def inlined(schema: Any, definitions: Mapping[str, Any] | None = None) -> Any:
    """A schema without references: its `$defs` are at hand in no document but its own."""
    if isinstance(schema, list):
        return [inlined(one, definitions) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    known = schema.get("$defs", definitions)
    if "$ref" in schema:
        return inlined(known[schema["$ref"].removeprefix("#/$defs/")], known)
    return {name: inlined(value, known) for name, value in schema.items() if name != "$defs"}
