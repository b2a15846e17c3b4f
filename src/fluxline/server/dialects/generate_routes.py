"""`POST /generate`, which two systems gave to two bodies: one picture, or a batch of many.

A body with a field that only the batch has, null or not, is a batch; any other is one picture.
"""

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from fluxline.errors import FluxlineError, RequestError
from fluxline.request import ImageReady, ImageResult, failure_of
from fluxline.server import envelope, sse
from fluxline.server.body import BlankPrompt
from fluxline.server.choice import Choice, choose
from fluxline.server.dialects import batch, single
from fluxline.server.exchange import caller_of, json_fields, terms_of, unless_gone
from fluxline.server.fields import Fields
from fluxline.server.links import Links
from fluxline.server.machine import memory_of
from fluxline.server.uploads import Uploads
from fluxline.service import Service, Terms, Ticket, Wish
from fluxline.telemetry import request_id_var

NDJSON = "application/x-ndjson"


def generate_router(service: Service, links: Links, uploads: Uploads, *, most: int) -> APIRouter:
    """Make the routes of a service. most: pictures of one batch."""
    router = APIRouter(tags=["generate"])

    async def generate(request: Request) -> Response:
        """Draw one picture, or a batch of many, by the body's fields."""
        fields = await json_fields(request)
        return await answered(request, fields, is_batch=fields.has(*batch.OWN))

    async def generate_by(profile: str, request: Request) -> Response:
        """Draw one picture, or a batch of many, with a profile."""
        fields = await json_fields(request)
        is_batch = fields.has(*batch.OWN)
        return await answered(request, fields, is_batch=is_batch, profile=profile)

    async def generate_batch(request: Request) -> Response:
        """Draw a batch: many pictures, as different as asked, and the best of them."""
        return await answered(request, await json_fields(request), is_batch=True)

    async def answered(
        request: Request, fields: Fields, *, is_batch: bool, profile: str | None = None
    ) -> Response:
        try:
            choosing = choose(fields, service.roster, request.scope, profile=profile)
            choice = await unless_gone(request, choosing)
            terms = await terms_of(request, door="batch" if is_batch else "single", keeps=True)
            if is_batch:
                return await many(request, fields, choice, terms)
            return await one(request, fields, choice, terms)
        except RequestError as exc:
            # The original promised 400 for a blank prompt, and FastAPI's 422 for all else.
            is_blank = not is_batch and isinstance(exc, BlankPrompt)
            told = single.in_these_words(exc)
            return envelope.of_detail(told, status=400 if is_blank else 422)
        except FluxlineError as exc:
            return envelope.of_detail(exc)

    async def one(request: Request, fields: Fields, choice: Choice, terms: Terms) -> Response:
        began = time.monotonic()
        asked = single.read(fields, choice, request_id=request_id_var.get())
        if asked.found is not None:
            begun = uploads.begin(asked.found, asked.request, service.vet(asked.request))
            asked = single.started(asked, *await unless_gone(request, begun))
        work = service.draw(asked.request, terms, caller_of(request))
        job_id, [image] = await unless_gone(request, work)
        link = await links.of(image.stored or "", request)
        memory = memory_of(service.engines)
        body = single.answer(asked, image, link, job_id=job_id, memory=memory, began=began)
        return Response(msgspec.json.encode(body), media_type="application/json")

    async def many(request: Request, fields: Fields, choice: Choice, terms: Terms) -> Response:
        began = time.monotonic()
        asked = batch.read(fields, choice, most=most, request_id=request_id_var.get())
        engines = service.roster.standing(Wish(profile=choice.profile)).engines
        gpus_used = min(asked.gpus, max(engines, 1), len(asked.choices))
        answer = _Answer(asked, links, request, gpus_used=gpus_used, began=began)
        if asked.is_streamed:
            ticket = await service.submit(asked.request, terms, caller_of(request))
            return _streamed(request, answer.parts(ticket))
        work = service.draw(asked.request, terms, caller_of(request))
        body = await answer.whole(*await unless_gone(request, work))
        return Response(msgspec.json.encode(body), media_type="application/json")

    routes: dict[str, Callable[..., Any]] = {  # Any: each has its own parameters
        "/generate": generate,
        "/v1/batches/generate": generate_batch,
        "/{profile}/generate": generate_by,
    }
    for path, answer in routes.items():
        router.add_api_route(path, answer, methods=["POST"], response_model=None)
    return router


class _Answer:
    """The answer to one batch, whole or in parts."""

    def __init__(
        self, asked: batch.Asked, links: Links, request: Request, *, gpus_used: int, began: float
    ) -> None:
        self._asked, self._links, self._request = asked, links, request
        self._gpus_used, self._began = gpus_used, began

    async def whole(self, job_id: str, images: Sequence[ImageResult]) -> dict[str, Any]:
        """All pictures at once."""
        return batch.answer(
            self._asked,
            images,
            await self._places(images),
            job_id=job_id,
            gpus_used=self._gpus_used,
            began=self._began,
        )

    async def parts(self, ticket: Ticket) -> AsyncGenerator[tuple[str, dict[str, Any]], None]:
        """Each picture when it is ready, then the whole; or what went wrong."""
        images: list[ImageResult] = []
        async with ticket:
            try:
                async for event in ticket:
                    if error := failure_of(event):
                        raise error
                    if isinstance(event, ImageReady):
                        images.append(event.image)
                        yield "image", await self._part(event.image)
                yield "done", await self.whole(ticket.job_id, images)
            except FluxlineError as exc:
                _, error_object = envelope.spelt(exc)
                yield "error", {"error": error_object}

    async def _part(self, image: ImageResult) -> dict[str, Any]:
        """A picture that may not be among the best when all are there."""
        spelt = batch.image_of(self._asked, image, await self._places([image]))
        return {**spelt, "provisional": self._asked.request.top_k is not None}

    async def _places(self, images: Sequence[ImageResult]) -> dict[str, str]:
        """Where the pictures can be read, by their keys."""
        keys = {image.stored or "" for image in images}
        return {key: await self._links.of(key, self._request) for key in keys}


def _streamed(
    request: Request, parts: AsyncGenerator[tuple[str, dict[str, Any]], None]
) -> StreamingResponse:
    """Answer in parts: as server-sent events to who asks for these, else a line of JSON each."""
    if "text/event-stream" in request.headers.get("accept", ""):
        return sse.response(sse.event(name, data) async for name, data in parts)
    lines = (msgspec.json.encode(data) + b"\n" async for _, data in parts)
    return StreamingResponse(lines, headers=sse.HEADERS, media_type=NDJSON)
