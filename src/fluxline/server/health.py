"""What probes and people ask first: does it live, is it ready, what is it."""

import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Response

from fluxline.errors import DatabaseDown, NotReady
from fluxline.server import envelope
from fluxline.service import Service, Status

VERSION = version("fluxline")
ENDPOINTS = (
    "/v1/images/generations",
    "/v1/jobs",
    "/v1/models",
    "/generate",
    "/submit-request",
    "/model-status",
    "/health",
    "/docs",
    "/openapi.json",
)


def health_router(service: Service) -> APIRouter:
    """Make the routes of a service."""
    router = APIRouter(tags=["health"])
    began = time.monotonic()

    async def live() -> dict[str, str]:
        """Answer as long as the process does."""
        return {"status": "ok"}

    async def ready() -> Any:  # Any: a dict, or a whole response
        """Answer 200 when a picture can be asked for, 503 with the reason when not."""
        status = service.status
        if status.state == "ready":
            return {"status": "ready", "models": status.models, "profiles": states(status)}
        return refused(status)

    async def startup() -> Any:  # Any: a dict, or a whole response
        """Answer 200 once the model has been loaded, and from then on."""
        status = service.status
        if status.state in ("starting", "failed"):
            return refused(status)
        return {"status": "started", "models": status.models, "profiles": states(status)}

    def refused(status: Status) -> Response:
        return envelope.failure(
            503,
            f"not ready: {status.reason}",
            kind="server_error",
            code=(DatabaseDown if status.state == "cut_off" else NotReady).code,
            headers={"retry-after": "2"},
            extra={
                "status": status.state,
                "reason": status.reason,
                "profiles": states(status),
            },
        )

    def states(status: Status) -> dict[str, str]:
        return {one.name: one.state for one in status.profiles}

    async def health() -> dict[str, Any]:
        """Tell how things stand. Always 200: probes ask the other three."""
        status = service.status
        return {
            "status": "healthy" if status.state == "ready" else status.state,
            "service": "fluxline",
            "reason": status.reason,
            "version": VERSION,
            "models": status.models,
            "profiles": states(status),
            "waiting": status.waiting,
            "running": status.running,
            "replicas": status.engines,
            "restarts": status.restarts,
            "uptime_s": round(time.monotonic() - began, 3),
        }

    async def root() -> dict[str, Any]:
        """Tell a visitor where to go."""
        return {
            "name": "Fluxline",
            "message": "Fluxline draws pictures of prompts",
            "version": VERSION,
            "status": service.status.state,
            "model_loaded": service.status.state == "ready",
            "models": service.status.models,
            "endpoints": ENDPOINTS,
        }

    routes: dict[str, Callable[..., Any]] = {
        "/": root,
        "/health": health,
        "/health/live": live,
        "/health/ready": ready,
        "/health/startup": startup,
    }
    for path, answer in routes.items():
        router.add_api_route(path, answer, methods=["GET"], response_model=None)
        router.add_api_route(
            path, answer, methods=["HEAD"], response_model=None, include_in_schema=False
        )
    return router
