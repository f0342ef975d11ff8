"""The application: every API over one service."""

from fastapi import FastAPI

from opensana import __version__
from opensana.serve import page
from opensana.serve.api import a1111, health, native, openai
from opensana.serve.errors import RESPONSES, add_handlers
from opensana.serve.gate.guard import Guard
from opensana.serve.gate.keys import NO_KEYS, Keys
from opensana.serve.service import Service


def make_app(service: Service, *, keys: Keys = NO_KEYS, any_host: bool = False) -> FastAPI:
    """All routes, guarded; without the pages of FastAPI, which load scripts from elsewhere.

    Without keys it answers to names of this machine alone, unless `any_host`.
    """
    service.auth = bool(keys)
    app = FastAPI(
        title="opensana",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses=RESPONSES,
    )
    add_handlers(app)
    app.include_router(health.router(service))
    app.include_router(native.router(service))
    app.include_router(openai.router(service))
    app.include_router(a1111.router(service))
    app.include_router(page.router(service))
    app.add_middleware(
        Guard,
        keys=keys,
        body_bytes=service.limits.body_bytes,
        metrics=service.metrics,
        any_host=any_host,
    )
    return app
