"""What clients of the AUTOMATIC1111 web UI look up: its settings, models and lists.

Most of the lists are empty here; clients ask for them before they draw.
"""

import asyncio
import json
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request, Response

from fluxline.errors import FluxlineError, InvalidParams, UnsupportedFormat
from fluxline.images import SAMPLER_TITLES, Recipe, read_recipe
from fluxline.server.dialects import a1111_answers
from fluxline.server.dialects.a1111 import SCHEDULES
from fluxline.server.exchange import json_fields
from fluxline.server.fields import Fields
from fluxline.server.machine import memory_of
from fluxline.server.uploads import from_base64
from fluxline.service import Service, Wish

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


def add_facts(router: APIRouter, service: Service) -> None:
    """Add their routes."""
    facts = Facts(service)
    told: dict[str, Callable[..., Any]] = {  # Any: each has its own parameters
        "/options": facts.options,
        "/sd-models": facts.models,
        "/loras": facts.loras,
        "/memory": facts.memory,
        "/samplers": _samplers,
        "/schedulers": _schedulers,
        "/scripts": _scripts,
        "/embeddings": _embeddings,
        "/cmd-flags": _flags,
        **{f"/{path}": _nothing for path in EMPTY},
    }
    done: dict[str, Callable[..., Any]] = {
        "/options": facts.set_options,
        "/png-info": _png_info,
        "/refresh-checkpoints": _done,
        "/refresh-loras": _done,
    }
    for method, routes in (("GET", told), ("POST", done)):
        for path, answer in routes.items():
            name = answer.__name__.lstrip("_")
            router.add_api_route(path, answer, methods=[method], name=name)


def read_checkpoint(fields: Fields) -> str | None:
    """Read which model is set, of all settings that are sent. Raises InvalidParams."""
    return fields.text("sd_model_checkpoint")


def read_base64(fields: Fields) -> str:
    """Read a picture's file, as base64. Raises InvalidParams."""
    return fields.text("image") or ""


class Facts:
    """What a service has to tell."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def options(self) -> dict[str, Any]:
        """Tell the settings that clients look at."""
        return {
            "sd_model_checkpoint": self._service.roster.all[0].name,
            "samples_format": "png",
            "enable_pnginfo": True,
            "live_previews_enable": True,
        }

    async def set_options(self, request: Request) -> Response:
        """Accept the settings a client sends back; only the model means anything here."""
        fields = await json_fields(request)
        try:
            self._service.roster.choose(Wish(model=read_checkpoint(fields)))
        except FluxlineError as exc:
            return a1111_answers.refusal(exc)
        return Response(b"null", media_type="application/json")

    async def models(self) -> list[dict[str, Any]]:
        """List what is served."""
        return [a1111_answers.model(one.name) for one in self._service.roster.all]

    async def loras(self) -> list[dict[str, Any]]:
        """List the LoRAs there are."""
        return [a1111_answers.lora(info) for info, _ in await self._service.loras.infos()]

    async def memory(self) -> dict[str, Any]:
        """Tell the memory of this machine, in bytes."""
        told = memory_of(self._service.engines)
        used, total = told.ram_used_bytes, told.ram_total_bytes
        return {
            "ram": {"free": total - used, "used": used, "total": total},
            "cuda": {"system": {"used": told.vram_used_bytes}},
        }


async def _samplers() -> list[dict[str, Any]]:
    """List the samplers."""
    return [
        {"name": title, "aliases": [name], "options": {}} for name, title in SAMPLER_TITLES.items()
    ]


async def _schedulers() -> list[dict[str, Any]]:
    """List the schedules."""
    names = dict.fromkeys(SCHEDULES.values())
    return [{"name": name, "label": name.title(), "aliases": []} for name in names]


async def _scripts() -> dict[str, Any]:
    """List the scripts: there are none."""
    return {"txt2img": [], "img2img": []}


async def _embeddings() -> dict[str, Any]:
    """List the embeddings: there are none."""
    return {"loaded": {}, "skipped": {}}


async def _flags() -> dict[str, Any]:
    """Tell the flags: none of that program's."""
    return {}


async def _nothing() -> list[Any]:
    """List what there is none of."""
    return []


async def _done() -> dict[str, Any]:
    """Do nothing: there is nothing to refresh."""
    return {}


async def _png_info(request: Request) -> Response:
    """Read the recipe in a picture of ours."""
    fields = await json_fields(request)
    try:
        recipe = await asyncio.to_thread(_recipe_in, read_base64(fields))
    except (UnsupportedFormat, InvalidParams):
        message = "image must be a PNG, JPEG, WebP or AVIF file as base64"
        return a1111_answers.refusal(InvalidParams(message, field="image"))
    text = recipe.to_infotext() if recipe else ""
    body = {"info": text, "items": {"parameters": text} if text else {}, "parameters": {}}
    return Response(json.dumps(body).encode(), media_type="application/json")


def _recipe_in(text: str) -> Recipe | None:
    return read_recipe(from_base64(text, "image"))
