"""The dual service's routes about the model: loaded or not, on what, with which LoRA.

LoRA itself is not served yet, and these routes say so.
"""

from typing import Any

from fastapi import APIRouter, Request, Response

from fluxline.errors import FluxlineError
from fluxline.server import envelope
from fluxline.server.dialects.single import memory_told, model_type
from fluxline.server.exchange import unless_gone
from fluxline.server.machine import memory_of
from fluxline.service import Service

NO_LORA = "LoRA is not served yet"


def admin_router(service: Service) -> APIRouter:
    """Make the routes of a service."""
    router = APIRouter(tags=["admin"])

    @router.post("/load-model")
    async def load_model(request: Request) -> Any:  # Any: a dict, or a whole response
        """Wait until the model is loaded; it begins to load when the server starts."""
        was_loaded = service.status.state == "ready"
        try:
            await unless_gone(request, service.opened())
            info = service.model(None)
        except FluxlineError as exc:
            return envelope.of_detail(exc)
        words = "is already loaded" if was_loaded else "loaded successfully"
        return {"message": f"Model {info.name} {words}", "model_type": model_type(info)}

    @router.get("/model-status")
    async def model_status() -> dict[str, Any]:
        """Tell what is loaded, where, and how much memory is used."""
        info = next(iter(service.models), None)
        device = info.device if info else "cpu"
        return {
            "model_loaded": service.status.state == "ready",
            "model": info.name if info else None,
            "model_type": model_type(info) if info else None,
            "selected_gpu": None if device.startswith("cpu") else device,
            "device": device,
            "replicas": service.status.engines,
            **memory_told(memory_of(service.engines)),
            **lora(),
        }

    @router.post("/apply-lora")
    async def apply_lora() -> Response:
        """Refuse: there is no LoRA yet."""
        return envelope.failure(
            501,
            NO_LORA,
            kind="server_error",
            code="not_implemented",
            headers=envelope.NO_RETRY,
            extra={"detail": NO_LORA},
        )

    @router.post("/remove-lora")
    async def remove_lora() -> dict[str, Any]:
        """Leave the model without a LoRA, as it is."""
        return {"message": "No LoRA is applied", **lora()}

    @router.get("/lora-status")
    async def lora_status() -> dict[str, Any]:
        """Tell which LoRA is applied to every picture."""
        info = next(iter(service.models), None)
        return {**lora(), "model_type": model_type(info) if info else None, "note": NO_LORA}

    @router.get("/loras")
    async def loras() -> dict[str, Any]:
        """List the LoRAs there are."""
        return {"loras": [], "note": NO_LORA}

    @router.get("/gpu-info")
    async def gpu_info() -> dict[str, Any]:
        """Tell on what the models run."""
        gpus = [info.device for info in service.models if not info.device.startswith("cpu")]
        return {
            "gpu_count": len(gpus),
            "gpus": gpus,
            "replicas": service.status.engines,
            "devices": [
                {
                    "model": info.name,
                    "device": info.device,
                    "dtype": info.dtype,
                    "precision": info.precision,
                }
                for info in service.models
            ],
        }

    return router


def lora() -> dict[str, Any]:
    """No LoRA, in the words of both halves of the dual service."""
    return {
        "lora_loaded": None,
        "lora_applied": False,
        "lora_name": None,
        "current_lora": None,
        "lora_weight": None,
    }
