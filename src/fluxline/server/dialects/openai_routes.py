"""The routes of OpenAI's Images API, with `/v1` before them and without, and in Azure's form."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from fluxline.errors import FluxlineError, RequestError
from fluxline.request import ImageReady, ImageResult, Progress, best, failure_of, ranks
from fluxline.server import envelope, sse
from fluxline.server.body import in_callers_words
from fluxline.server.choice import choose
from fluxline.server.dialects import openai
from fluxline.server.exchange import caller_of, fields_of, json_fields, terms_of, unless_gone
from fluxline.server.fields import Fields, MissingParam
from fluxline.server.links import Links
from fluxline.server.reader import USUAL, Manner
from fluxline.server.uploads import Uploads, find
from fluxline.service import Service, Ticket, Wish
from fluxline.telemetry import request_id_var

EDITED = Manner(is_cut=True)
"""Without a mask the transparency of the picture is one, as OpenAI has it."""
AZURE = "/openai/deployments/{deployment}"


def openai_router(service: Service, links: Links, uploads: Uploads, *, max_n: int) -> APIRouter:
    """Make the routes of a service."""
    router = APIRouter(tags=["openai"])
    started_at = int(time.time())

    async def generate(request: Request) -> Response:
        """Draw pictures of a prompt, from a picture if there is one."""
        return await _drawn(request, await json_fields(request), event="image_generation")

    async def edit(request: Request) -> Response:
        """Draw pictures of a prompt from a picture; a form, or JSON."""
        fields = await fields_of(request)
        check_edit(fields)
        return await _drawn(request, fields, event="image_edit", manner=EDITED)

    async def _drawn(
        request: Request, fields: Fields, *, event: str, manner: Manner = USUAL
    ) -> Response:
        try:
            choice = await unless_gone(request, choose(fields, service.roster, request.scope))
            asked = openai.read(fields, choice, max_n=max_n, request_id=request_id_var.get())
            if found := find(fields, manner):
                info = service.vet(asked.request)
                beginning = uploads.begin(found, asked.request, info)
                asked = openai.started(asked, *await unless_gone(request, beginning), info)
            terms = await terms_of(
                request, door="openai", keeps=asked.wants_url, deadline_s=asked.deadline_s
            )
            if asked.is_streamed:
                ticket = await service.submit(asked.request, terms, caller_of(request))
                return sse.response(_events(asked, ticket, event))
            work = service.draw(asked.request, terms, caller_of(request))
            job_id, images = await unless_gone(request, work)
        except RequestError as exc:
            raise in_callers_words(exc, fields) from exc
        keys = [image.stored for image in images if image.stored and asked.wants_url]
        where = {key: await links.of(key, request) for key in keys}
        body = openai.answer(asked, images, where, job_id=job_id)
        # Base64 of many large pictures takes a while: not on the event loop.
        raw = await asyncio.to_thread(msgspec.json.encode, body)
        return Response(raw, media_type="application/json")

    async def list_models() -> dict[str, Any]:
        """List what is served."""
        data = [openai.model(one, started_at, max_n) for one in service.roster.all]
        return {"object": "list", "data": data}

    async def one_model(name: str) -> dict[str, Any]:
        """Tell of one model."""
        return openai.model(service.roster.standing(Wish(model=name)), started_at, max_n)

    for path, posted in (("/images/generations", generate), ("/images/edits", edit)):
        router.add_api_route(AZURE + path, posted, methods=["POST"], include_in_schema=False)
    for prefix in ("/v1", ""):
        for method, path, answer in (
            ("POST", "/images/generations", generate),
            ("POST", "/images/edits", edit),
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


def check_edit(fields: Fields) -> None:
    """See that there is a picture to edit. Raises MissingParam, InvalidParams."""
    found = find(fields)
    if found is None or found.image is None:
        raise MissingParam("image is required: the picture to start from", field="image")


async def _events(asked: openai.Asked, ticket: Ticket, name: str) -> AsyncGenerator[bytes, None]:
    """Tell of a request as OpenAI streams: partial pictures, then each whole one.

    name: what its events begin with. The best of many are known only at the end.
    """
    partials: Counter[int] = Counter()
    candidates: list[ImageResult] = []
    async with ticket:
        try:
            async for event in ticket:
                if error := failure_of(event):
                    raise error
                match event:
                    case Progress(index=index, preview=bytes()) if partials[index] < asked.partials:
                        yield _partial(asked, event, partials[index], name)
                        partials[index] += 1
                    case ImageReady(image=image) if asked.request.top_k:
                        candidates.append(image)
                    case ImageReady(image=image):
                        yield _completed(asked, image, {}, ticket.job_id, name)
            places = ranks(candidates)
            for image in best(candidates, asked.request.top_k):
                yield _completed(asked, image, places, ticket.job_id, name)
        except FluxlineError as exc:
            _, error_object = envelope.spelt(exc)
            yield sse.event("error", {"type": "error", "error": error_object, "sequence_number": 0})


def _partial(asked: openai.Asked, event: Progress, number: int, name: str) -> bytes:
    kind = f"{name}.partial_image"
    data = {
        "type": kind,
        "b64_json": event.preview,
        "created_at": int(time.time()),
        "size": asked.size,
        "quality": asked.quality,
        "background": "opaque",
        "output_format": asked.request.output_format,
        "partial_image_index": number,
        "image_index": event.index,
        "step": event.evaluation,
        "total_steps": event.total,
    }
    return sse.event(kind, data)


def _completed(
    asked: openai.Asked, image: ImageResult, places: Mapping[int, int], job_id: str, name: str
) -> bytes:
    kind = f"{name}.completed"
    data = {
        "type": kind,
        "b64_json": image.data,
        "created_at": int(time.time()),
        "size": f"{image.width}x{image.height}",
        "quality": asked.quality,
        "background": "opaque",
        "output_format": image.format,
        "usage": openai.usage(asked.request, [image]),
        "preset": asked.choice.preset,
        "backend": image.backend,
        "profile": image.profile,
        "image_index": image.index,
        "seed": image.seed,
        **openai.judged(image, places),
        "id": job_id,
        "warnings": list(dict.fromkeys((*asked.warnings, *image.warnings))),
    }
    return sse.event(kind, data)
