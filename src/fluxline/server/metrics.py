"""`/metrics`: Prometheus' text for scrapers, five numbers as JSON for everybody else."""

from typing import Any

from fastapi import APIRouter, Request, Response

from fluxline.server.machine import MIB, cpu_percent, memory_of
from fluxline.service import Service

TEXT = "text/plain; version=0.0.4; charset=utf-8"


def metrics_router(service: Service, *, has_grpc: bool) -> APIRouter:
    """Make the routes of a service. has_grpc: gRPC is served beside it."""
    router = APIRouter(tags=["metrics"])

    @router.get("/metrics", response_model=None)
    async def metrics(request: Request) -> Any:  # Any: a dict, or a whole response
        """Tell how things stand, in the form that is asked for."""
        accept = request.headers.get("accept", "")
        if "text/plain" in accept or "openmetrics" in accept:
            return await prometheus()
        memory = memory_of(service.engines)
        return {
            "cpu_percent": cpu_percent(),
            "ram_used_mb": round(memory.ram_used_bytes / MIB),
            "gpu_used_mb": round(memory.vram_used_bytes / MIB),
            "worker_alive": service.status.engines > 0,
            "grpc_alive": has_grpc,
        }

    @router.get("/metrics/prometheus")
    async def prometheus() -> Response:
        """Tell how things stand as Prometheus reads it."""
        return Response(service.meter.text(), media_type=TEXT)

    return router
