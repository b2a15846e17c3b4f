"""Black Forest Labs' API: a task is sent to a model's address, then polled until it is ready.

Pictures are JPEG unless PNG is asked for, as there. Every model name leads to the model served
here, since clients have theirs built in.
"""

import uuid
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from fluxline.errors import FluxlineError
from fluxline.jobs import JobRow, JobState
from fluxline.request import (
    GenerationRequest,
    SamplingParams,
)
from fluxline.server import envelope
from fluxline.server.body import (
    LARGEST_SCALE,
    MOST_STEPS,
    ignored,
    read_format,
    read_prompt,
    read_seed,
    read_sides,
    refuse_unserved,
)
from fluxline.server.choice import Choice, choose, read_priority
from fluxline.server.exchange import caller_of, json_fields, terms_of, unless_gone
from fluxline.server.fields import Fields
from fluxline.server.links import Links
from fluxline.service import Service
from fluxline.service.record import result_of, told_of

UNSERVED = (
    "input_image",
    "image_prompt",
    "control_image",
    "mask",
    "finetune_id",
    "webhook_url",
    "aspect_ratio",
)
"""Not served yet; a task that brings one is refused."""
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


def bfl_router(service: Service, links: Links) -> APIRouter:
    """Make the routes of a service."""
    router = APIRouter(prefix="/v1", tags=["bfl"])

    @router.post("/flux-{name}")
    async def submit(name: str, request: Request) -> Response:
        """Accept a task."""
        fields = await json_fields(request)
        try:
            choice = await unless_gone(request, choose(fields, service.roster, request.scope))
            wanted = _read(fields, choice)
            warnings = [f"{name} has no effect" for name in WITHOUT_EFFECT if fields.given(name)]
            warnings += ignored(fields)
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
            "duration": round(sum(first.timings_s.values()), 3),
        }

    return router


def _read(fields: Fields, choice: Choice) -> GenerationRequest:
    prompt, info = read_prompt(fields), choice.info
    refuse_unserved(fields, UNSERVED)
    output_format = read_format(fields, usual="jpeg")
    seed = read_seed(fields)
    guidance = fields.number("guidance", low=0, high=LARGEST_SCALE)
    width, height = read_sides(fields)
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
                guidance=guidance if info.guidance is not None else None,
            )
        ),
    )


def _refusal(error: FluxlineError) -> Response:
    """Answer in that API's form."""
    status, told = envelope.spelt(error)
    body = {"error": told["code"], "message": told["message"], "details": {"field": told["param"]}}
    raw = msgspec.json.encode({**body, "detail": told["message"]})
    status = 422 if status == 400 else status
    return Response(raw, status, envelope.hints(error), media_type="application/json")
