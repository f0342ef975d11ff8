"""The web page: static files of the package under a strict content security policy.

It has no build step and reaches nothing but this server: `page/main.js` says what it is made of.
"""

from functools import cache
from importlib.resources import files

from fastapi import APIRouter
from fastapi.responses import Response

from opensana.serve.errors import ApiError
from opensana.serve.service import Service

TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    )
)
HEADERS = {"content-security-policy": POLICY, "cache-control": "no-cache"}


@cache
def page_files() -> dict[str, bytes]:
    """Every file of the page by its name, read once."""
    folder = files("opensana.serve") / "page"
    found = {one.name: one.read_bytes() for one in folder.iterdir() if one.is_file()}
    return {name: data for name, data in found.items() if name.rpartition(".")[2] in TYPES}


def router(service: Service) -> APIRouter:
    """`/` and `/page/FILE`; what the page shows, it asks the native API for."""
    routes = APIRouter(include_in_schema=False)

    @routes.get("/")
    async def home() -> Response:
        return _answer("index.html")

    @routes.get("/page/{name}")
    async def file(name: str) -> Response:
        return _answer(name)

    return routes


def _answer(name: str) -> Response:
    data = page_files().get(name)
    if data is None:
        raise ApiError(404, f"the page has no file {name}")
    return Response(data, media_type=TYPES[name.rpartition(".")[2]], headers=HEADERS)
