"""The routes of the AUTOMATIC1111 web UI's API that its clients call, under `/sdapi/v1`."""

import asyncio
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from fastapi import APIRouter, Request, Response

from fluxline.errors import FluxlineError, InvalidParams, UnsupportedFormat
from fluxline.images import SAMPLER_TITLES, Recipe, read_recipe
from fluxline.request import CancelledEvent, ImageReady, ImageResult, Progress, failure_of
from fluxline.server import envelope
from fluxline.server.choice import choose
from fluxline.server.dialects import a1111
from fluxline.server.dialects.a1111 import INIT_IMAGES
from fluxline.server.exchange import caller_of, json_fields, terms_of, unless_gone
from fluxline.server.fields import Fields, MissingParam, UnsupportedParam
from fluxline.server.machine import memory_of
from fluxline.server.uploads import Uploads, from_base64
from fluxline.service import Service, Ticket, Wish
from fluxline.telemetry import request_id_var

EMPTY = (
    "upscalers",
    "latent-upscale-modes",
    "sd-vae",
    "sd-modules",
    "hypernetworks",
    "prompt-styles",
    "face-restorers",
    "realesrgan-models",
    "script-info",
)


@dataclass(slots=True, eq=False)
class Drawing:
    """How far one call is."""

    job_id: str
    owner: str
    count: int  # pictures
    began: float = field(default_factory=time.monotonic)
    done: dict[int, tuple[int, int]] = field(default_factory=dict)  # picture -> evaluation, total
    preview: bytes | None = None

    def take(self, event: Progress) -> None:
        """Note how far a picture is."""
        self.done[event.index] = (event.evaluation, event.total)
        self.preview = event.preview or self.preview

    def told(self) -> dict[str, Any]:
        """Spell it."""
        total = max((total for _, total in self.done.values()), default=1) * self.count
        done = sum(done for done, _ in self.done.values())
        took_s = time.monotonic() - self.began
        eta_s = took_s * (total - done) / done if done else 0.0
        number = sum(done == total for done, total in self.done.values())
        return a1111.progress(
            done, total, self.preview, jobs=self.count, number=number, eta_s=eta_s
        )


def a1111_router(service: Service, uploads: Uploads, *, max_n: int) -> APIRouter:
    """Make the routes of a service."""
    router = APIRouter(prefix="/sdapi/v1", tags=["a1111"])
    drawings: list[Drawing] = []

    @router.post("/txt2img")
    async def txt2img(request: Request) -> Response:
        """Draw pictures of a prompt."""
        fields = await json_fields(request)
        if fields.asks(INIT_IMAGES):
            message = "pictures to start from go to /sdapi/v1/img2img"
            return _refusal(UnsupportedParam(message, field=INIT_IMAGES))
        return await drawn(request, fields)

    @router.post("/img2img")
    async def img2img(request: Request) -> Response:
        """Draw pictures of a prompt from a picture."""
        fields = await json_fields(request)
        if not fields.asks(INIT_IMAGES):
            message = "init_images is required: the picture to start from"
            return _refusal(MissingParam(message, field=INIT_IMAGES))
        return await drawn(request, fields)

    async def drawn(request: Request, fields: Fields) -> Response:
        try:
            model = a1111.checkpoint_of(fields)
            choosing = choose(fields, service.roster, request.scope, model=model)
            choice = await unless_gone(request, choosing)
            asked = a1111.read(fields, choice, max_n=max_n, request_id=request_id_var.get())
            if asked.found is not None:
                service.vet(asked.request)
                work = uploads.begin(asked.found, asked.request, choice.info)
                begun, told = await unless_gone(request, work)
                asked = replace(asked, request=begun, warnings=(*asked.warnings, *told))
            caller = caller_of(request)
            terms = await terms_of(request, door="a1111")
            ticket = await service.submit(asked.request, terms, caller)
            drawing = Drawing(ticket.job_id, caller.owner, asked.request.count)
            drawings.append(drawing)
            try:
                images = await unless_gone(request, _followed(ticket, drawing))
            finally:
                drawings.remove(drawing)
        except FluxlineError as exc:
            return _refusal(exc)
        sent = await asyncio.to_thread(_echoed, await request.body())
        # Base64 of many large pictures takes a while: not on the event loop.
        raw = await asyncio.to_thread(a1111.answer, asked, images, sent)
        return Response(raw, media_type="application/json")

    @router.get("/progress")
    async def progress(request: Request, skip_current_image: bool = False) -> dict[str, Any]:
        """Tell how far the caller's oldest call is; with what the model expects, to look at."""
        mine = [d for d in drawings if d.owner == caller_of(request).owner]
        if not mine:
            return a1111.progress(0, 0, None, jobs=0, number=0, eta_s=0.0)
        told = mine[0].told()
        return {**told, "current_image": None} if skip_current_image else told

    async def interrupt(request: Request) -> dict[str, Any]:
        """Stop drawing what the caller asked for; what is finished is answered."""
        caller = caller_of(request)
        for drawing in list(drawings):
            if drawing.owner == caller.owner:
                await service.cancel(drawing.job_id, owner=caller.owner)
        return {}

    @router.get("/options")
    async def options() -> dict[str, Any]:
        """Tell the settings that clients look at."""
        return {
            "sd_model_checkpoint": service.roster.all[0].name,
            "samples_format": "png",
            "enable_pnginfo": True,
            "live_previews_enable": True,
        }

    @router.post("/options")
    async def set_options(request: Request) -> Response:
        """Accept the settings a client sends back; only the model means anything here."""
        fields = await json_fields(request)
        try:
            service.roster.choose(Wish(model=fields.text("sd_model_checkpoint")))
        except FluxlineError as exc:
            return _refusal(exc)
        return Response(b"null", media_type="application/json")

    @router.get("/sd-models")
    async def models() -> list[dict[str, Any]]:
        """List what is served."""
        return [a1111.model(one.name) for one in service.roster.all]

    @router.get("/loras")
    async def loras() -> list[dict[str, Any]]:
        """List the LoRAs there are."""
        return [a1111.lora(info) for info, _ in await service.loras.infos()]

    @router.get("/samplers")
    async def samplers() -> list[dict[str, Any]]:
        """List the samplers."""
        return [
            {"name": title, "aliases": [name], "options": {}}
            for name, title in SAMPLER_TITLES.items()
        ]

    @router.get("/schedulers")
    async def schedulers() -> list[dict[str, Any]]:
        """List the schedules."""
        names = dict.fromkeys(a1111.SCHEDULES.values())
        return [{"name": name, "label": name.title(), "aliases": []} for name in names]

    @router.get("/scripts")
    async def scripts() -> dict[str, Any]:
        """List the scripts: there are none."""
        return {"txt2img": [], "img2img": []}

    @router.get("/embeddings")
    async def embeddings() -> dict[str, Any]:
        """List the embeddings: there are none."""
        return {"loaded": {}, "skipped": {}}

    @router.get("/cmd-flags")
    async def flags() -> dict[str, Any]:
        """Tell the flags: none of that program's."""
        return {}

    @router.get("/memory")
    async def memory() -> dict[str, Any]:
        """Tell the memory of this machine, in bytes."""
        told = memory_of(service.engines)
        used, total = told.ram_used_bytes, told.ram_total_bytes
        return {
            "ram": {"free": total - used, "used": used, "total": total},
            "cuda": {"system": {"used": told.vram_used_bytes}},
        }

    @router.post("/png-info")
    async def png_info(request: Request) -> Response:
        """Read the recipe in a picture of ours."""
        fields = await json_fields(request)
        try:
            recipe = await asyncio.to_thread(_recipe_in, fields.text("image") or "")
        except (UnsupportedFormat, InvalidParams):
            message = "image must be a PNG, JPEG, WebP or AVIF file as base64"
            return _refusal(InvalidParams(message, field="image"))
        text = recipe.to_infotext() if recipe else ""
        body = {"info": text, "items": {"parameters": text} if text else {}, "parameters": {}}
        return Response(json.dumps(body).encode(), media_type="application/json")

    for path in ("/interrupt", "/skip"):
        router.add_api_route(path, interrupt, methods=["POST"])
    for path in EMPTY:
        router.add_api_route(f"/{path}", _nothing, methods=["GET"])
    for path in ("refresh-checkpoints", "refresh-loras"):
        done: Callable[..., Any] = _done
        router.add_api_route(f"/{path}", done, methods=["POST"])
    return router


async def _followed(ticket: Ticket, drawing: Drawing) -> list[ImageResult]:
    """Follow a call to its end. Interrupted, it gives what was finished."""
    images: list[ImageResult] = []
    async with ticket:
        async for event in ticket:
            if isinstance(event, Progress):
                drawing.take(event)
            elif isinstance(event, ImageReady):
                images.append(event.image)
            elif isinstance(event, CancelledEvent):
                break
            elif error := failure_of(event):
                raise error
    return sorted(images, key=lambda image: image.index)


def _echoed(raw: bytes) -> dict[str, Any]:
    """The body again, as clients expect it back; a number that JSON does not have becomes text."""

    def number(text: str) -> float | str:
        value = float(text)
        return value if math.isfinite(value) else text

    sent: dict[str, Any] = json.loads(raw, parse_float=number, parse_constant=str)
    if not sent.get("include_init_images"):
        sent |= {name: None for name in (INIT_IMAGES, "mask") if name in sent}
    return sent


def _recipe_in(text: str) -> Recipe | None:
    return read_recipe(from_base64(text, "image"))


async def _nothing() -> list[Any]:
    """List what there is none of."""
    return []


async def _done() -> dict[str, Any]:
    """Do nothing: there is nothing to refresh."""
    return {}


def _refusal(error: FluxlineError) -> Response:
    """Answer in that program's form, with our `error` object in place of its name."""
    status, told = envelope.spelt(error)
    status = 422 if status == 400 else status
    body = {
        "error": type(error).__name__,
        "detail": told["message"],
        "body": "",
        "errors": told["message"],
    }
    raw = json.dumps(body).encode()
    return Response(raw, status, envelope.hints(error), media_type="application/json")
