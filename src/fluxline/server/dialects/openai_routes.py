"""The routes of OpenAI's Images API, with `/v1` before them and without, and their answers."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from fluxline.errors import RequestError
from fluxline.request import ImageResult, ModelInfo
from fluxline.server.dialects import openai
from fluxline.server.exchange import json_fields, unless_gone
from fluxline.service import Service
from fluxline.telemetry import request_id_var

MODEL_STAGES = ("encode", "denoise", "decode")
"""What Flue's gen_time counts: neither waiting nor compressing."""


def openai_router(service: Service, *, max_n: int) -> APIRouter:
    """Make the routes of a service."""
    router = APIRouter(tags=["openai"])
    started_at = int(time.time())

    async def generate(request: Request) -> Response:
        """Draw pictures of a prompt."""
        fields, request_id = await json_fields(request), request_id_var.get()
        await unless_gone(request, service.opened())
        asked = openai.read(fields, service, max_n=max_n, request_id=request_id)
        try:
            images = await unless_gone(request, service.draw(asked.request))
        except RequestError as exc:
            raise openai.in_callers_words(exc, asked.fields) from exc
        # Base64 of many large pictures takes a while: not on the event loop.
        body = await asyncio.to_thread(_answer, images, asked.warnings)
        return Response(body, media_type="application/json")

    async def list_models() -> dict[str, Any]:
        """List what is served."""
        data = [_model(info, started_at, max_n) for info in service.models]
        return {"object": "list", "data": data}

    async def one_model(name: str) -> dict[str, Any]:
        """Tell of one model."""
        return _model(service.model(name), started_at, max_n)

    for prefix in ("/v1", ""):
        for method, path, answer in (
            ("POST", "/images/generations", generate),
            ("GET", "/models", list_models),
            ("GET", "/models/{name:path}", one_model),
        ):
            route: Callable[..., Any] = answer  # Any: each has its own parameters
            router.add_api_route(
                prefix + path,
                route,
                methods=[method],
                include_in_schema=prefix == "/v1",
                response_model=None,
            )
    return router


def _answer(images: tuple[ImageResult, ...], warnings: tuple[str, ...]) -> bytes:
    """Spell finished pictures as JSON. msgspec writes bytes as base64."""
    first = images[0]
    timings_s = _slowest(images)
    said = dict.fromkeys((*warnings, *(line for image in images for line in image.warnings)))
    return msgspec.json.encode(
        {
            "created": int(time.time()),
            "data": [
                {
                    "b64_json": image.data,
                    "seed": image.seed,
                    "width": image.width,
                    "height": image.height,
                }
                for image in images
            ],
            "background": "opaque",
            "output_format": first.format,
            "size": f"{first.width}x{first.height}",
            "model": first.model,
            "image": first.data,
            "gen_time": max(_drawing_s(image) for image in images),
            "timings": {f"{stage}_ms": round(1000 * s, 3) for stage, s in timings_s.items()},
            "warnings": list(said),
        }
    )


def _drawing_s(image: ImageResult) -> float:
    return sum(image.timings_s.get(stage, 0.0) for stage in MODEL_STAGES)


def _slowest(images: tuple[ImageResult, ...]) -> dict[str, float]:
    """Seconds of each stage. Pictures of one request are drawn together: the longest counts."""
    slowest: dict[str, float] = {}
    for image in images:
        for stage, took_s in image.timings_s.items():
            slowest[stage] = max(took_s, slowest.get(stage, 0.0))
    return slowest


def _model(info: ModelInfo, created: int, max_n: int) -> dict[str, Any]:
    """Spell a model as OpenAI does, with what clients and people look for beside it."""
    return {
        "id": info.name,
        "object": "model",
        "created": created,
        "owned_by": "fluxline",
        "type": "image",
        "capabilities": ["image"],
        "architecture": {"input_modalities": ["text"], "output_modalities": ["image"]},
        "supported_endpoints": ["/v1/images/generations"],
        "family": info.family,
        "native_size": f"{info.native_width}x{info.native_height}",
        "max_size": f"{info.max_width}x{info.max_height}",
        "default_steps": info.default_steps,
        "max_steps": info.max_steps,
        "default_guidance": info.guidance,
        "max_n": max_n,
        "prompt_tokens": info.text_length,
        "samplers": list(info.samplers),
        "schedules": list(info.schedules),
        "dtype": info.dtype,
        "device": info.device,
    }
