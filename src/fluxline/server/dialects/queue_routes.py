"""The dual service's queue: one picture asked now and fetched later. Jobs by other names."""

import uuid
from datetime import UTC, datetime
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from fluxline.errors import FluxlineError, RequestError
from fluxline.jobs import JobRow, JobState
from fluxline.server import envelope
from fluxline.server.choice import choose
from fluxline.server.dialects import single
from fluxline.server.exchange import caller_of, json_fields, terms_of, unless_gone
from fluxline.server.links import Links
from fluxline.server.uploads import Uploads
from fluxline.service import Service
from fluxline.service.record import result_of, told_of

DOOR = "queue"
WORDS = {
    JobState.QUEUED: "pending",
    JobState.RUNNING: "processing",
    JobState.DONE: "completed",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "cancelled",
}


def queue_router(service: Service, links: Links, uploads: Uploads) -> APIRouter:
    """Make the routes of a service."""
    router = APIRouter(tags=["queue"])

    @router.post("/submit-request", status_code=202)
    async def submit(request: Request) -> Response:
        """Ask for one picture, by the fields of the single dialect, and a priority."""
        fields = await json_fields(request)
        try:
            choice = await unless_gone(request, choose(fields, service.roster, request.scope))
            asked = single.read(fields, choice, request_id=f"job_{uuid.uuid4().hex}")
            if asked.found is not None:
                begun = uploads.begin(asked.found, asked.request, service.vet(asked.request))
                asked = single.started(asked, *await unless_gone(request, begun))
            terms = await terms_of(request, door=DOOR, is_attended=False)
            ticket = await service.submit(asked.request, terms, caller_of(request))
        except RequestError as exc:
            return envelope.of_detail(single.in_these_words(exc), status=422)
        except FluxlineError as exc:
            return envelope.of_detail(exc)
        async with ticket:
            body = {
                "request_id": ticket.job_id,
                "status": "pending",
                "message": "Request submitted",
                "warnings": list(asked.warnings),
            }
        return Response(msgspec.json.encode(body), 202, media_type="application/json")

    @router.get("/request-status/{request_id}")
    async def status(request_id: str, request: Request) -> Any:  # Any: a dict, or a response
        """Tell where a request stands, and its result when it has one."""
        row = await service.job(request_id, owner=caller_of(request).scope)
        return await spelt(row, request) if row else _unknown(request_id)

    @router.delete("/cancel-request/{request_id}")
    async def cancel(request_id: str, request: Request) -> Any:  # Any: a dict, or a response
        """Cancel a request that is not over."""
        row = await service.cancel(request_id, owner=caller_of(request).scope)
        if row is None:
            return _unknown(request_id)
        was_over = row.state in (JobState.DONE, JobState.FAILED)
        words = f"Request is {WORDS[row.state]} already" if was_over else "Request cancelled"
        return {"message": words, "request_id": row.id, "status": WORDS[row.state]}

    @router.get("/queue-stats")
    async def stats() -> dict[str, Any]:
        """Count the requests in each state."""
        counts = await service.counts()
        told = {WORDS[state]: counts.get(state, 0) for state in JobState}
        return {**told, "total": sum(told.values()), "queue_limit": service.queue_limit}

    async def spelt(row: JobRow, request: Request) -> dict[str, Any]:
        asked, result = told_of(row), None
        if drawn := result_of(row.result):
            first = drawn[0]
            result = {
                "image_url": await links.of(first.key, request) if first.key else None,
                "seed": first.seed,
                "width": first.width,
                "height": first.height,
                "backend": first.backend,
            }
        return {
            "request_id": row.id,
            "status": WORDS[row.state],
            "created_at": _time(row.created_at),
            "started_at": _time(row.started_at),
            "completed_at": _time(row.finished_at),
            "priority": row.priority,
            "params": {
                "prompt": asked.prompt,
                "seed": asked.seed,
                "width": asked.params.width,
                "height": asked.params.height,
                "num_inference_steps": asked.params.steps,
                "guidance_scale": asked.params.guidance,
                "negative_prompt": asked.params.negative_prompt or None,
            },
            "result": result,
            "error": row.error_message,
        }

    return router


def _unknown(request_id: str) -> Response:
    message = f"no request {request_id[:64]}"
    return envelope.failure(404, message, code="not_found", extra={"detail": message})


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat()
