"""What probes and people ask first: does it live, is it ready, what is it."""

import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Response

from fluxline.errors import NotReady
from fluxline.server import envelope
from fluxline.service import Service


def health_router(service: Service) -> APIRouter:
    """Make the routes of a service."""
    router = APIRouter(tags=["health"])
    began = time.monotonic()

    async def live() -> dict[str, str]:
        """Answer as long as the process does."""
        return {"status": "ok"}

    async def ready(response: Response) -> Any:  # Any: a dict, or a whole response
        """Answer 200 when a picture can be asked for, 503 with the reason when not."""
        status = service.status
        if status.state == "ready":
            return {"status": "ready", "models": status.models}
        return envelope.failure(
            503,
            f"not ready: {status.reason}",
            kind="server_error",
            code=NotReady.code,
            headers={"retry-after": "2"},
            extra={"status": status.state, "reason": status.reason},
        )

    async def health() -> dict[str, Any]:
        """Tell how things stand. Always 200: probes ask the other two."""
        status = service.status
        return {
            "status": status.state,
            "reason": status.reason,
            "version": version("fluxline"),
            "models": status.models,
            "waiting": status.waiting,
            "running": status.running,
            "restarts": status.restarts,
            "uptime_s": round(time.monotonic() - began, 3),
        }

    async def root() -> dict[str, Any]:
        """Tell a visitor where to go."""
        return {
            "name": "Fluxline",
            "version": version("fluxline"),
            "status": service.status.state,
            "endpoints": ["/v1/images/generations", "/v1/models", "/health", "/openapi.json"],
        }

    routes: dict[str, Callable[..., Any]] = {
        "/": root,
        "/health": health,
        "/health/live": live,
        "/health/ready": ready,
    }
    for path, answer in routes.items():
        router.add_api_route(path, answer, methods=["GET"], response_model=None)
        router.add_api_route(
            path, answer, methods=["HEAD"], response_model=None, include_in_schema=False
        )
    return router
