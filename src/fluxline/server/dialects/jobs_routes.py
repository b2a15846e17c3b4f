"""The routes of jobs: ask and get an id, look, follow, cancel, retry."""

import uuid
from dataclasses import replace
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Request, Response
from starlette.exceptions import HTTPException

from fluxline.errors import RequestError
from fluxline.jobs import JobRow, JobState
from fluxline.request import GenerationRequest
from fluxline.server import sse
from fluxline.server.body import (
    in_callers_words,
    read_deadline,
    read_request,
    warnings_of,
)
from fluxline.server.choice import Choice, choose
from fluxline.server.dialects import jobs
from fluxline.server.dialects.webhooks import Webhooks
from fluxline.server.exchange import caller_of, fields_of, terms_of, unless_gone
from fluxline.server.fields import Fields
from fluxline.server.links import Links
from fluxline.server.uploads import Uploads, find
from fluxline.service import Service


def read(fields: Fields, choice: Choice, *, max_n: int) -> tuple[GenerationRequest, float | None]:
    """Read what is to be drawn, and in how many seconds. Raises RequestError."""
    asked = read_request(fields, choice, max_n=max_n, request_id=f"job_{uuid.uuid4().hex}")
    deadline_s = read_deadline(fields)
    previews = fields.integer("preview_every", low=1, high=1000) or 0
    return replace(asked, preview_every=previews), deadline_s


def jobs_router(
    service: Service, links: Links, webhooks: Webhooks, uploads: Uploads, *, max_n: int
) -> APIRouter:
    """Make the routes of a service."""
    router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

    @router.post("", status_code=202, response_class=Response)
    async def submit(request: Request) -> Response:
        """Ask for pictures; they are drawn whether anybody waits or not."""
        fields = await fields_of(request)
        try:
            choice = await unless_gone(request, choose(fields, service.roster, request.scope))
            asked, deadline_s = read(fields, choice, max_n=max_n)
            webhook = webhooks.read(fields, request)
            warnings = warnings_of(fields, asked)
            if found := find(fields):
                info = service.vet(asked)
                asked, more = await unless_gone(request, uploads.begin(found, asked, info))
                warnings += more
            terms = await terms_of(request, door="jobs", is_attended=False, deadline_s=deadline_s)
            terms = replace(terms, webhook=webhook)
            ticket = await service.submit(asked, terms, caller_of(request))
        except RequestError as exc:
            raise in_callers_words(exc, fields) from exc
        async with ticket:
            row = await row_of(ticket.job_id, request)
        told = {**await spelt(row, request), "preset": choice.preset, "warnings": warnings}
        where = {"location": f"/v1/jobs/{row.id}"}
        return Response(msgspec.json.encode(told), 202, where, media_type="application/json")

    @router.get("")
    async def listed(
        request: Request,
        status: Annotated[list[JobState] | None, Query()] = None,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
        before: Annotated[float | None, Query(description="seconds since 1970")] = None,
    ) -> dict[str, Any]:
        """List one's own jobs, the newest first."""
        rows = await service.jobs(
            owner=caller_of(request).scope, states=tuple(status or ()), before=before, limit=limit
        )
        return {"object": "list", "data": [await spelt(row, request) for row in rows]}

    @router.get("/{job_id}")
    async def one(job_id: str, request: Request) -> dict[str, Any]:
        """Look at a job."""
        row = await row_of(job_id, request)
        hook = await webhooks.of(row.id)
        return {**await spelt(row, request), "webhook": hook and jobs.webhook(hook)}

    @router.get("/{job_id}/events", response_class=Response)
    async def events(job_id: str, request: Request) -> Response:
        """Follow a job; after a broken line, from the event after `Last-Event-ID`."""
        row = await row_of(job_id, request)
        last = request.headers.get("last-event-id", "")
        after = int(last) if last.isascii() and last.isdigit() and len(last) < 10 else 0
        return sse.response(jobs.events(await service.follow(row, after=after)))

    @router.post("/{job_id}/cancel")
    async def cancel(job_id: str, request: Request) -> dict[str, Any]:
        """Cancel a job that is not over, within one evaluation."""
        row = await service.cancel(job_id, owner=caller_of(request).scope)
        return await spelt(known(row), request)

    @router.post("/{job_id}/retry", status_code=202)
    async def retry(job_id: str, request: Request) -> dict[str, Any]:
        """Queue a job that failed or was cancelled again, from its seed."""
        row = await service.retry(job_id, caller_of(request))
        return await spelt(known(row), request)

    async def row_of(job_id: str, request: Request) -> JobRow:
        return known(await service.job(job_id, owner=caller_of(request).scope))

    def known(row: JobRow | None) -> JobRow:
        if row is None:
            raise HTTPException(404, "no such job")
        return row

    async def spelt(row: JobRow, request: Request) -> dict[str, Any]:
        return await jobs.job(row, lambda key: links.of(key, request))

    return router
