"""The dual service's routes about the model: loaded or not, on what, with which LoRA."""

from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request, Response

from fluxline.errors import FluxlineError, RequestError, UnsupportedFormat
from fluxline.images import format_of
from fluxline.loras import LoraInfo
from fluxline.request import LoraRef
from fluxline.server import envelope
from fluxline.server.body import MOST_WEIGHT
from fluxline.server.choice import PRESET
from fluxline.server.dialects.single import in_these_words, memory_told, model_type
from fluxline.server.exchange import body_of, caller_of, json_fields, unless_gone
from fluxline.server.fields import Fields, FormFields, MissingParam
from fluxline.server.machine import memory_of
from fluxline.service import Service, Standing, Wish

NOTE = "a request's own lora_name or loras act on it alone, in place of the one applied"
MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp", "avif": "image/avif"}
WHICH = ("model", "profile")


def admin_router(service: Service) -> APIRouter:
    """Make the routes of a service."""
    models, adapters = Models(service), Adapters(service)
    routes: tuple[tuple[str, str, Callable[..., Any]], ...] = (  # Any: each has its own parameters
        ("POST", "/load-model", models.load_model),
        ("POST", "/unload-model", models.unload_model),
        ("GET", "/model-status", models.model_status),
        ("POST", "/apply-lora", adapters.apply_lora),
        ("POST", "/remove-lora", adapters.remove_lora),
        ("GET", "/lora-status", adapters.lora_status),
        ("GET", "/loras", adapters.loras),
        ("GET", "/loras/preview", adapters.lora_preview),
        ("GET", "/gpu-info", models.gpu_info),
    )
    router = APIRouter(tags=["admin"])
    for method, path, answer in routes:
        router.add_api_route(path, answer, methods=[method])
    return router


class Models:
    """What is loaded, and on what."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def load_model(self, request: Request) -> Any:  # Any: a dict, or a whole response
        """Load a profile, and wait for it; one that is eager began when the server started."""
        try:
            standing = await self._asked(request)
            words = "is already loaded" if standing.state == "ready" else "loaded successfully"
            info = await unless_gone(request, self._service.roster.load(standing.name))
        except FluxlineError as exc:
            return envelope.of_detail(exc)
        told = {"model_type": model_type(info), "profile": standing.name}
        return {"message": f"Model {info.name} {words}", **told}

    async def unload_model(self, request: Request) -> Any:  # Any: a dict, or a whole response
        """Give a profile's memory back, if it is lazy and has nothing to draw."""
        caller = caller_of(request)
        if caller.owner and not caller.is_admin:
            message = "only an administrator's key may unload a model"
            return envelope.failure(403, message, code="forbidden", extra={"detail": message})
        try:
            standing = await self._asked(request)
            is_gone = await self._service.roster.unload(standing.name)
        except FluxlineError as exc:
            return envelope.of_detail(exc)
        if not is_gone:
            message = f"profile {standing.name} stays: it draws, or is not lazy"
            return envelope.failure(409, message, code="in_use", extra={"detail": message})
        return {"message": f"Model {standing.model} unloaded", "profile": standing.name}

    async def model_status(self, request: Request) -> Any:  # Any: a dict, or a whole response
        """Tell what is loaded, where, and how much memory is used; ?profile= says of which."""
        try:
            standing = await self._asked(request)
        except FluxlineError as exc:
            return envelope.of_detail(exc)
        return {
            **_standing(standing),
            **memory_told(memory_of(self._service.engines)),
            **_applied(self._service.loras.applied),
        }

    async def gpu_info(self) -> dict[str, Any]:
        """Tell on what the models run."""
        models = self._service.models
        gpus = [info.device for info in models if not info.device.startswith("cpu")]
        return {
            "gpu_count": len(gpus),
            "gpus": gpus,
            "replicas": self._service.status.engines,
            "devices": [
                {
                    "model": info.name,
                    "device": info.device,
                    "dtype": info.dtype,
                    "precision": info.precision,
                }
                for info in models
            ],
        }

    async def _asked(self, request: Request) -> Standing:
        """The profile that the query names, or the body; else the one of this port."""
        named = dict(request.query_params)
        if await body_of(request):
            fields = await json_fields(request)
            named |= read_which(fields)
        here = filter(None, [request.scope.get(PRESET)])
        wish = Wish(model=named.get("model"), profile=named.get("profile"), preferred=tuple(here))
        return self._service.roster.standing(wish)


class Adapters:
    """Which LoRAs there are, and which one acts where none is named."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def apply_lora(self, request: Request) -> Any:  # Any: a dict, or a whole response
        """Let a LoRA act on every picture that names none of its own, until it is removed."""
        if not _may_apply(request):
            return _forbidden()
        try:
            fields = await _fields(request)
            lora = read_lora(fields)
            await self._service.loras.apply(lora)
        except RequestError as exc:
            return envelope.of_detail(in_these_words(exc), status=422)
        return {"message": f"LoRA {lora.name} is applied", **_applied(self._service.loras.applied)}

    async def remove_lora(self, request: Request) -> Any:  # Any: a dict, or a whole response
        """Let no LoRA act but those that requests name."""
        if not _may_apply(request):
            return _forbidden()
        before = self._service.loras.applied
        self._service.loras.remove()
        message = f"LoRA {before.name} is removed" if before else "No LoRA is applied"
        return {"message": message, **_applied(None)}

    async def lora_status(self) -> dict[str, Any]:
        """Tell which LoRA acts on every picture that names none of its own."""
        info = next(iter(self._service.models), None)
        return {
            **_applied(self._service.loras.applied),
            "model_type": model_type(info) if info else None,
            "note": NOTE,
        }

    async def loras(self) -> dict[str, Any]:
        """List the LoRAs there are, and what is known of each."""
        found = await self._service.loras.infos()
        return {"loras": [_lora(info, digest) for info, digest in found], "note": NOTE}

    async def lora_preview(self, name: str) -> Response:
        """Show the picture that lies beside a LoRA."""
        try:
            preview = await self._service.loras.preview(name)
        except FluxlineError as exc:
            return envelope.of_detail(exc, status=404)
        if preview is None:
            return envelope.failure(404, f"LoRA {name[:64]!r} has no preview", code="not_found")
        try:
            kind = MEDIA_TYPES[format_of(preview)]
        except UnsupportedFormat as exc:
            return envelope.of_detail(exc, status=404)
        return Response(preview, media_type=kind)


def read_which(fields: Fields) -> dict[str, str]:
    """Read which model or profile is meant. Raises InvalidParams."""
    return {name: text for name in WHICH if (text := fields.text(name))}


def read_lora(fields: Fields) -> LoraRef:
    """Read which LoRA to apply. Raises InvalidParams, MissingParam."""
    name = fields.text("lora_name", "name")
    weight = fields.number("lora_weight", "weight", low=0, high=MOST_WEIGHT)
    if not name:
        raise MissingParam("lora_name is required: which to apply", field="lora_name")
    return LoraRef(name, 1.0 if weight is None else weight)


def _standing(one: Standing) -> dict[str, Any]:
    """Spell how a profile is, in the original's words and ours."""
    info = one.info
    device = info.device if info else "cpu"
    return {
        "model_loaded": one.state == "ready",
        "model": info.name if info else None,
        "model_type": model_type(info) if info else None,
        "profile": one.name,
        "state": one.state,
        "reason": one.reason or None,
        "memory_bytes": one.held_bytes,
        "selected_gpu": None if device.startswith("cpu") else device,
        "device": device,
        "replicas": one.engines,
    }


async def _fields(request: Request) -> Fields:
    """What was sent: a JSON body, or the query, as the two halves of the dual service have it."""
    if (await body_of(request)).strip():
        return await json_fields(request)
    return FormFields(list(request.query_params.multi_items()))


def _may_apply(request: Request) -> bool:
    """Whether the caller may change what others are drawn: anybody where no keys are asked for."""
    caller = caller_of(request)
    return caller.is_admin or not caller.owner


def _forbidden() -> Response:
    message = "what acts on everybody's pictures is changed with an admin key"
    extra = {"detail": message}
    return envelope.failure(403, message, code="forbidden", extra=extra)


def _applied(lora: LoraRef | None) -> dict[str, Any]:
    """Which LoRA is applied, in the words of both halves of the dual service."""
    name = lora and lora.name
    return {
        "lora_loaded": name,
        "lora_applied": lora is not None,
        "lora_name": name,
        "current_lora": name,
        "lora_weight": lora and lora.strength,
    }


def _lora(info: LoraInfo, digest: str) -> dict[str, Any]:
    """Spell a LoRA; where its file lies is nobody's business."""
    preview = f"/loras/preview?{urlencode({'name': info.name})}" if info.preview else None
    return {
        "name": info.name,
        "size_bytes": info.size_bytes,
        "rank": info.rank,
        "trigger_words": list(info.trigger_words),
        "preview": preview,
        "hash": digest,
    }
