"""Jobs: asked now, fetched later. What a row looks like to its owner, and the events of one."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from fluxline.errors import EngineError, FluxlineError, NotReady, error_of
from fluxline.jobs import JobRow, Webhook
from fluxline.request import (
    CancelledEvent,
    Done,
    Event,
    Failed,
    GenerationRequest,
    ImageReady,
    Progress,
    Queued,
    Started,
    ranks,
)
from fluxline.server import envelope, sse
from fluxline.service import Drawn, Ticket
from fluxline.service.record import result_of, told_of


async def job(row: JobRow, link: Callable[[str], Awaitable[str]]) -> dict[str, Any]:
    """Spell a job; `link` leads to a picture by its key in the store.

    One whose result cannot be read says so in its `error`: others are told beside it.
    """
    fault: FluxlineError | None = None
    drawn: Sequence[Drawn] = ()
    if row.error_code is not None:
        fault = error_of(row.error_code, row.error_message or "")
    try:
        drawn = result_of(row.result)
    except EngineError as exc:
        fault = exc
    return {
        "id": row.id,
        "object": "job",
        "status": row.state,
        "created_at": _time(row.created_at),
        "started_at": _time(row.started_at),
        "finished_at": _time(row.finished_at),
        "attempts": row.attempts,
        "priority": row.rank,
        "deadline": _time(row.deadline),
        "request": asked(told_of(row)),
        "images": await _images(drawn, link),
        "error": fault and envelope.spelt(fault)[1],
    }


def asked(request: GenerationRequest) -> dict[str, Any]:
    """Spell what was asked, so that asking it again draws the same; from a picture, with that."""
    params = request.params
    given = {
        "prompt": request.prompt,
        "model": request.model,
        "profile": request.profile,
        "n": request.count,
        "seed": request.seed,
        "width": params.width,
        "height": params.height,
        "steps": params.steps,
        "sampler": params.sampler,
        "schedule": params.schedule,
        "guidance": params.guidance,
        "cfg_scale": params.cfg_scale,
        "eta": params.eta or None,
        "strength": params.strength,
        "loras": None if params.loras is None else [asdict(lora) for lora in params.loras],
        "parallel": params.parallel and params.parallel.spelt,
        "from_image": True if request.source is not None else None,
        "with_mask": True if request.mask is not None else None,
        "references": len(request.references) or None,
        "negative_prompt": params.negative_prompt or None,
        "output_format": request.output_format,
        "output_compression": request.compression,
        "top_k": request.top_k,
    }
    return {name: value for name, value in given.items() if value is not None}


async def _images(
    drawn: Sequence[Drawn], link: Callable[[str], Awaitable[str]]
) -> list[dict[str, Any]]:
    places = ranks(drawn)
    return [
        _image(one, await link(one.key) if one.key else None, places.get(one.index))
        for one in drawn
    ]


def _image(drawn: Drawn, link: str | None, rank: int | None) -> dict[str, Any]:
    """Spell one picture of a job; rank: its place among all of the job's, 1 the best."""
    return {
        "index": drawn.index,
        "url": link,
        "seed": drawn.seed,
        "width": drawn.width,
        "height": drawn.height,
        "format": drawn.format,
        "profile": drawn.profile or None,
        "backend": drawn.backend,
        "bytes": drawn.size,
        "sha256": drawn.sha256,
        "score": drawn.score,
        "scorer": drawn.scorer,
        "rank": rank,
        "timings_ms": {stage: round(1000 * s, 3) for stage, s in drawn.timings_s.items()},
        "warnings": list(drawn.warnings),
    }


def webhook(hook: Webhook) -> dict[str, Any]:
    """Spell whether a job's caller was told of its end."""
    return {
        "url": hook.url,
        "attempts": hook.attempts,
        "delivered_at": _time(hook.delivered_at),
        "error": hook.error,
    }


async def events(ticket: Ticket) -> AsyncGenerator[bytes, None]:
    """Tell what happens to a job, each event with its number."""
    async with ticket:
        try:
            async for happened in ticket:
                name, data = _told(happened)
                yield sse.event(name, {"id": ticket.job_id, **data}, ticket.last_number)
        except NotReady:
            return  # the server stops, the job does not: whoever asks again hears the rest
        except FluxlineError as exc:
            _, error = envelope.spelt(exc)
            yield sse.event("failed", {"id": ticket.job_id, "error": error}, ticket.last_number)


def _told(event: Event) -> tuple[str, Mapping[str, Any]]:
    match event:
        case Queued(position=position):
            return "queued", {"position": position}
        case Started():
            return "started", {}
        case Progress(index=index, evaluation=evaluation, total=total, preview=preview):
            told = {"index": index, "evaluation": evaluation, "total": total}
            return "progress", told if preview is None else {**told, "preview": preview}
        case ImageReady(image=one):
            said = {"index": one.index, "seed": one.seed}
            return "image", {**said, "score": one.score, "scorer": one.scorer}
        case Failed(code=code, message=message):
            _, error = envelope.spelt(error_of(code, message))
            return "failed", {"error": error}
        case CancelledEvent():
            return "cancelled", {}
        case Done():
            return "done", {}
    raise TypeError(f"no such event: {event}")


def _time(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
