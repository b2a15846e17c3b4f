"""One HTTP exchange from its side of the socket: reading its body, noticing that it has left."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from fluxline.server.fields import Fields, parse_object

T = TypeVar("T")

BODY_TIMEOUT_S = 30.0
CLIENT_CLOSED = 499  # never sent: nobody is there to read it


async def json_fields(request: Request) -> Fields:
    """Read the body as one JSON object. Raises MalformedBody, HTTPException."""
    declared = request.headers.get("content-type", "application/json")
    media_type = declared.partition(";")[0].strip().lower()
    # A page of another site can make a browser post text or a form here, but not JSON.
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise HTTPException(415, f"content-type must be application/json; got {media_type}")
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            raw = await request.body()
    except TimeoutError:
        raise HTTPException(408, f"the body took over {BODY_TIMEOUT_S:g} seconds") from None
    except ClientDisconnect:
        raise HTTPException(CLIENT_CLOSED, "the caller left") from None
    return Fields(parse_object(raw))


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do the work, but cancel it as soon as the caller hangs up. The body must have been read."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_hung_up(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
    finally:
        for pending in (task, gone):
            pending.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)
    raise HTTPException(CLIENT_CLOSED, "the caller left")


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
