"""Black Forest Labs' API: a task is sent to a model's address, then polled until it is ready.

Pictures are JPEG unless PNG is asked for, as there. Every model name leads to the model served
here, since clients have theirs built in; -fill and -expand draw a part of a picture on any.
"""

import re
import uuid
from dataclasses import replace
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from fluxline.ability import ModelInfo
from fluxline.errors import FluxlineError, InvalidParams
from fluxline.jobs import JobRow, JobState
from fluxline.request import GenerationRequest, SamplingParams
from fluxline.server import envelope
from fluxline.server.body import (
    LARGEST_SCALE,
    MOST_STEPS,
    ignored,
    read_format,
    read_loras,
    read_parallel,
    read_prompt,
    read_seed,
    read_sides,
    refuse_unserved,
)
from fluxline.server.choice import Choice, choose, read_priority
from fluxline.server.exchange import caller_of, json_fields, terms_of, unless_gone
from fluxline.server.fields import Fields, MissingParam
from fluxline.server.links import Links
from fluxline.server.uploads import MOST_ADDED, Found, Uploads, find
from fluxline.service import Service
from fluxline.service.record import result_of, told_of

UNSERVED = ("preprocessed_image", "finetune_id", "webhook_url")
"""Not served yet; a task that brings one is refused."""
IMAGES = ("input_image", "image")
AFTER = ("control_image", "image_prompt")
"""Pictures that only a model made for them can look at."""
REFERENCES = tuple(f"input_image_{number}" for number in range(2, 11))
SIDES = ("left", "top", "right", "bottom")
LONGEST_ASPECT = 21 / 9
WITHOUT_EFFECT = (
    "safety_tolerance",
    "prompt_upsampling",
    "raw",
    "interval",
    "webhook_secret",
)
STATUS = {
    JobState.QUEUED: "Pending",
    JobState.RUNNING: "Pending",
    JobState.DONE: "Ready",
    JobState.FAILED: "Error",
    JobState.CANCELLED: "Error",  # clients poll on for any word they do not know
}


def bfl_router(service: Service, links: Links, uploads: Uploads) -> APIRouter:
    """Make the routes of a service."""
    router = APIRouter(prefix="/v1", tags=["bfl"])

    @router.post("/flux-{name}")
    async def submit(name: str, request: Request) -> Response:
        """Accept a task."""
        fields = await json_fields(request)
        try:
            choice = await unless_gone(request, choose(fields, service.roster, request.scope))
            wanted, found, warnings = read(fields, choice, name)
            if found is not None:
                begun = uploads.begin(found, wanted, service.vet(wanted))
                wanted, more = await unless_gone(request, begun)
                warnings += more
            terms = await terms_of(request, door="bfl", is_attended=False)
            ticket = await service.submit(wanted, terms, caller_of(request))
        except FluxlineError as exc:
            return _refusal(exc)
        async with ticket:
            url = f"{links.base(request)}/v1/get_result?id={ticket.job_id}"
            body = {"id": ticket.job_id, "polling_url": url, "warnings": warnings}
        return Response(msgspec.json.encode(body), media_type="application/json")

    @router.get("/get_result")
    async def result(request: Request, id: str = "") -> dict[str, Any]:
        """Tell where a task stands, and where its picture is."""
        row = await service.job(id, owner=caller_of(request).scope)
        if row is None:
            return {"id": id[:64], "status": "Task not found", "result": None, "progress": None}
        return {
            "id": row.id,
            "status": STATUS[row.state],
            "result": await sample(row, request),
            "progress": 1.0 if row.state == JobState.DONE else 0.0,
            "details": {"error": row.error_message} if row.error_message else None,
        }

    async def sample(row: JobRow, request: Request) -> dict[str, Any] | None:
        if not (drawn := result_of(row.result)):
            return None
        asked, first = told_of(row), drawn[0]
        return {
            "sample": await links.of(first.key, request) if first.key else None,
            "prompt": asked.prompt,
            "seed": first.seed,
            "backend": first.backend,
            "duration": round(sum(first.timings_s.values()), 3),
        }

    return router


def read(
    fields: Fields, choice: Choice, name: str
) -> tuple[GenerationRequest, Found | None, list[str]]:
    """Read a task for the model of that name, its pictures, and what of it has no effect.

    Raises InvalidParams, MissingParam, UnsupportedParam.
    """
    wanted, found = _read(fields, choice), _found(fields, choice.info, name)
    warnings = [f"{name} has no effect" for name in WITHOUT_EFFECT if fields.given(name)]
    return wanted, found, warnings + ignored(fields)


def _read(fields: Fields, choice: Choice) -> GenerationRequest:
    prompt, info = read_prompt(fields), choice.info
    refuse_unserved(fields, UNSERVED)
    output_format = read_format(fields, usual="jpeg")
    seed = read_seed(fields)
    guidance = fields.number("guidance", low=0, high=LARGEST_SCALE)
    width, height = read_sides(fields)
    if aspect := _aspect(fields):
        width, height = info.size_like(aspect, width, height)
    return GenerationRequest(
        id=f"job_{uuid.uuid4().hex}",
        prompt=prompt,
        seed=seed,
        model=info.name,
        profile=choice.profile,
        priority=read_priority(fields),
        output_format=output_format,
        params=choice.fill(
            SamplingParams(
                width=width,
                height=height,
                steps=fields.integer("steps", low=1, high=MOST_STEPS),
                guidance=guidance if info.is_guided else None,
                strength=fields.number("strength", low=0, high=1),
                loras=read_loras(fields),
                parallel=read_parallel(fields),
            ),
            has_shape=fields.has(*IMAGES, *AFTER),
        ),
    )


def _found(fields: Fields, info: ModelInfo, name: str) -> Found | None:
    """Find the pictures of a task. Raises InvalidParams, MissingParam, UnsupportedParam."""
    images = (*IMAGES, *AFTER) if info.needs_picture else IMAGES
    if not info.needs_picture:
        refuse_unserved(fields, AFTER)
    found = find(fields, images=images, references=REFERENCES)
    sides = tuple(fields.integer(side, low=0, high=MOST_ADDED) or 0 for side in SIDES)
    if any(sides):
        left, top, right, bottom = sides
        found = replace(found or Found(), expand=(left, top, right, bottom))
    if name.endswith("-expand") and not any(sides):
        message = f"{name} draws beside a picture: give {', '.join(SIDES)}, in px"
        raise MissingParam(message, field=SIDES[0])
    if name.endswith("-fill") and (found is None or found.mask is None):
        raise MissingParam(f"{name} fills a part of a picture: give its mask", field="mask")
    return found


def _aspect(fields: Fields) -> tuple[int, int] | None:
    """Read the shape that is asked, like 16:9. Raises InvalidParams."""
    text = fields.text("aspect_ratio")
    if not text:
        return None
    match = re.fullmatch(r"([0-9]{1,4}):([0-9]{1,4})", text, re.ASCII)
    wide, high = (int(side) for side in match.groups()) if match else (0, 0)
    if not wide or not high or max(wide / high, high / wide) > LONGEST_ASPECT:
        message = f"aspect_ratio must be from 21:9 to 9:21, like 16:9; got {text[:20]!r}"
        raise InvalidParams(message, field="aspect_ratio")
    return wide, high


def _refusal(error: FluxlineError) -> Response:
    """Answer in that API's form."""
    status, told = envelope.spelt(error)
    body = {"error": told["code"], "message": told["message"], "details": {"field": told["param"]}}
    raw = msgspec.json.encode({**body, "detail": told["message"]})
    status = 422 if status == 400 else status
    return Response(raw, status, envelope.hints(error), media_type="application/json")
