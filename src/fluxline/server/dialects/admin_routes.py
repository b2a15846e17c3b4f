"""The dual service's routes about the model: loaded or not, on what, with which LoRA.

LoRA itself is not served yet, and these routes say so.
"""

from typing import Any

from fastapi import APIRouter, Request, Response

from fluxline.errors import FluxlineError
from fluxline.server import envelope
from fluxline.server.choice import PRESET
from fluxline.server.dialects.single import memory_told, model_type
from fluxline.server.exchange import caller_of, json_fields, unless_gone
from fluxline.server.machine import memory_of
from fluxline.service import Service, Standing, Wish

WHICH = ("model", "profile")
NO_LORA = "LoRA is not served yet"


def admin_router(service: Service) -> APIRouter:
    """Make the routes of a service."""
    router = APIRouter(tags=["admin"])

    @router.post("/load-model")
    async def load_model(request: Request) -> Any:  # Any: a dict, or a whole response
        """Load a profile, and wait for it; one that is eager began when the server started."""
        try:
            standing = await asked(request)
            words = "is already loaded" if standing.state == "ready" else "loaded successfully"
            info = await unless_gone(request, service.roster.load(standing.name))
        except FluxlineError as exc:
            return envelope.of_detail(exc)
        told = {"model_type": model_type(info), "profile": standing.name}
        return {"message": f"Model {info.name} {words}", **told}

    @router.post("/unload-model")
    async def unload_model(request: Request) -> Any:  # Any: a dict, or a whole response
        """Give a profile's memory back, if it is lazy and has nothing to draw."""
        caller = caller_of(request)
        if caller.owner and not caller.is_admin:
            message = "only an administrator's key may unload a model"
            return envelope.failure(403, message, code="forbidden", extra={"detail": message})
        try:
            standing = await asked(request)
            is_gone = await service.roster.unload(standing.name)
        except FluxlineError as exc:
            return envelope.of_detail(exc)
        if not is_gone:
            message = f"profile {standing.name} stays: it draws, or is not lazy"
            return envelope.failure(409, message, code="in_use", extra={"detail": message})
        return {"message": f"Model {standing.model} unloaded", "profile": standing.name}

    @router.get("/model-status", response_model=None)
    async def model_status(request: Request) -> Any:  # Any: a dict, or a whole response
        """Tell what is loaded, where, and how much memory is used; ?profile= says of which."""
        try:
            standing = await asked(request)
        except FluxlineError as exc:
            return envelope.of_detail(exc)
        info = standing.info
        device = info.device if info else "cpu"
        return {
            "model_loaded": standing.state == "ready",
            "model": info.name if info else None,
            "model_type": model_type(info) if info else None,
            "profile": standing.name,
            "state": standing.state,
            "reason": standing.reason or None,
            "memory_bytes": standing.held_bytes,
            "selected_gpu": None if device.startswith("cpu") else device,
            "device": device,
            "replicas": standing.engines,
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

    async def asked(request: Request) -> Standing:
        """The profile that the query names, or the body; else the one of this port."""
        named = dict(request.query_params)
        if await request.body():
            fields = await json_fields(request)
            named |= {name: text for name in WHICH if (text := fields.text(name))}
        here = filter(None, [request.scope.get(PRESET)])
        wish = Wish(model=named.get("model"), profile=named.get("profile"), preferred=tuple(here))
        return service.roster.standing(wish)

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
