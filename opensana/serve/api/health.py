"""Whether the server is alive, whether it takes work, and its figures."""

from fastapi import APIRouter
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from opensana.serve.service import Service


def router(service: Service) -> APIRouter:
    routes = APIRouter()

    @routes.get("/healthz")
    async def healthz() -> JSONResponse:
        """The process answers."""
        return JSONResponse({"status": "ok"})

    @routes.get("/readyz")
    async def readyz() -> JSONResponse:
        """The model has drawn, and jobs are taken."""
        state = service.state
        return JSONResponse({"status": state}, 200 if state == "ready" else 503)

    @routes.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    return routes
