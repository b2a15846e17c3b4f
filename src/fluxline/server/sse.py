"""Server-sent events: how they are spelt, and that a silent line is not a dead one."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
from fastapi.responses import StreamingResponse

PING_S = 10.0  # proxies cut lines that are silent for longer
HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


def event(name: str, data: Any, number: int | None = None) -> bytes:
    """Spell one event. Bytes in the data become base64."""
    numbered = b"" if number is None else b"id: %d\n" % number
    return b"%sevent: %s\ndata: %s\n\n" % (numbered, name.encode(), msgspec.json.encode(data))


def response(events: AsyncGenerator[bytes, None]) -> StreamingResponse:
    """Answer with events as they come, and a comment now and then while none do."""
    return StreamingResponse(_alive(events), headers=HEADERS, media_type="text/event-stream")


async def _alive(events: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    coming: asyncio.Future[bytes] | None = None
    try:
        while True:
            coming = coming or asyncio.ensure_future(anext(events))
            await asyncio.wait({coming}, timeout=PING_S)
            if not coming.done():
                yield b": ping\n\n"
                continue
            try:
                chunk = coming.result()
            except StopAsyncIteration:
                return
            coming = None
            yield chunk
    finally:
        if coming and not coming.done():
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)
        await events.aclose()
