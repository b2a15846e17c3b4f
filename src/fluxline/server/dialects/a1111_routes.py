"""The routes of the AUTOMATIC1111 web UI's API that its clients call, under `/sdapi/v1`."""

import asyncio
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from fastapi import APIRouter, Request, Response

from fluxline.errors import FluxlineError
from fluxline.request import CancelledEvent, ImageReady, ImageResult, Progress, failure_of
from fluxline.server.choice import choose
from fluxline.server.dialects import a1111, a1111_answers
from fluxline.server.dialects.a1111 import INIT_IMAGES
from fluxline.server.dialects.a1111_facts import add_facts
from fluxline.server.exchange import caller_of, json_fields, terms_of, unless_gone
from fluxline.server.fields import Fields
from fluxline.server.uploads import Uploads
from fluxline.service import Service, Ticket
from fluxline.telemetry import request_id_var


def a1111_router(service: Service, uploads: Uploads, *, max_n: int) -> APIRouter:
    """Make the routes of a service."""
    router = APIRouter(prefix="/sdapi/v1", tags=["a1111"])
    desk = Desk(service, uploads, max_n=max_n)
    router.add_api_route("/txt2img", desk.txt2img, methods=["POST"])
    router.add_api_route("/img2img", desk.img2img, methods=["POST"])
    router.add_api_route("/progress", desk.progress, methods=["GET"])
    add_facts(router, service)
    for path in ("/interrupt", "/skip"):
        router.add_api_route(path, desk.interrupt, methods=["POST"])
    return router


@dataclass(slots=True, eq=False)
class CallProgress:
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
        return a1111_answers.progress(
            done, total, self.preview, jobs=self.count, number=number, eta_s=eta_s
        )


class Desk:
    """Draws what clients ask, and knows how far each call is. Lives on one event loop."""

    def __init__(self, service: Service, uploads: Uploads, *, max_n: int) -> None:
        self._service, self._uploads, self._max_n = service, uploads, max_n
        self._drawings: list[CallProgress] = []

    async def txt2img(self, request: Request) -> Response:
        """Draw pictures of a prompt."""
        return await self._answered(request, a1111.refuse_pictures)

    async def img2img(self, request: Request) -> Response:
        """Draw pictures of a prompt from a picture."""
        return await self._answered(request, a1111.need_pictures)

    async def progress(self, request: Request, skip_current_image: bool = False) -> dict[str, Any]:
        """Tell how far the caller's oldest call is; with what the model expects, to look at."""
        mine = [d for d in self._drawings if d.owner == caller_of(request).owner]
        if not mine:
            return a1111_answers.progress(0, 0, None, jobs=0, number=0, eta_s=0.0)
        told = mine[0].told()
        return {**told, "current_image": None} if skip_current_image else told

    async def interrupt(self, request: Request) -> dict[str, Any]:
        """Stop drawing what the caller asked for; what is finished is answered."""
        caller = caller_of(request)
        for drawing in list(self._drawings):
            if drawing.owner == caller.owner:
                await self._service.cancel(drawing.job_id, owner=caller.owner)
        return {}

    async def _answered(self, request: Request, check: Callable[[Fields], None]) -> Response:
        """Draw what a body asks for, if it passes the check, and spell it."""
        fields = await json_fields(request)
        try:
            check(fields)
            asked = await self._asked(request, fields)
            images = await self._drawn(request, asked)
        except FluxlineError as exc:
            return a1111_answers.refusal(exc)
        sent = await asyncio.to_thread(_echoed, await request.body())
        # Base64 of many large pictures takes a while: not on the event loop.
        raw = await asyncio.to_thread(a1111_answers.answer, asked, images, sent)
        return Response(raw, media_type="application/json")

    async def _asked(self, request: Request, fields: Fields) -> a1111.Asked:
        """Understand a body, and read its pictures."""
        model = a1111.checkpoint_of(fields)
        choosing = choose(fields, self._service.roster, request.scope, model=model)
        choice = await unless_gone(request, choosing)
        asked = a1111.read(fields, choice, max_n=self._max_n, request_id=request_id_var.get())
        if asked.found is None:
            return asked
        self._service.vet(asked.request)
        work = self._uploads.begin(asked.found, asked.request, choice.info)
        begun, told = await unless_gone(request, work)
        return replace(asked, request=begun, warnings=(*asked.warnings, *told))

    async def _drawn(self, request: Request, asked: a1111.Asked) -> list[ImageResult]:
        """Draw, and let others see how far it is."""
        caller = caller_of(request)
        terms = await terms_of(request, door="a1111")
        ticket = await self._service.submit(asked.request, terms, caller)
        drawing = CallProgress(ticket.job_id, caller.owner, asked.request.count)
        self._drawings.append(drawing)
        try:
            return await unless_gone(request, _followed(ticket, drawing))
        finally:
            self._drawings.remove(drawing)


async def _followed(ticket: Ticket, drawing: CallProgress) -> list[ImageResult]:
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
