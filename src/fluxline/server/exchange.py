"""One HTTP exchange from its side of the socket: reading its body, noticing that it has left."""

import asyncio
import hashlib
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from fluxline.errors import InvalidParams
from fluxline.server.choice import PRESET
from fluxline.server.fields import Fields, FormFields, MalformedBody, parse_object
from fluxline.service import Caller, Terms

T = TypeVar("T")

BODY_TIMEOUT_S = 30.0
SLOWEST_BYTES_S = 64 * 2**10  # of a longer body, a second: a telephone on a bad line
AT_ONCE_BYTES = 256 * 2**10  # of a body, that may be read between two breaths of the event loop
KEY_LIMIT = 255  # characters of an Idempotency-Key
CLIENT_CLOSED = 499  # never sent: nobody is there to read it
RETRIES = "x-stainless-retry-count"
# Of Python; of Node, which tells it only where it was given for one request. Seconds.
PATIENCE = ("x-stainless-read-timeout", "x-stainless-timeout")


async def json_fields(request: Request, taken: str = "application/json") -> Fields:
    """Read the body as one JSON object. taken: what else might have been sent, for who sent
    neither. Raises MalformedBody, HTTPException.
    """
    declared = request.headers.get("content-type", "application/json")
    media_type = declared.partition(";")[0].strip().lower()
    # A page of another site can make a browser post text or a form here, but not JSON.
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise HTTPException(415, f"content-type must be {taken}; got {media_type}")
    raw = await body_of(request)
    if len(raw) <= AT_ONCE_BYTES:
        return Fields(parse_object(raw))
    return Fields(await asyncio.to_thread(parse_object, raw))


async def fields_of(request: Request) -> Fields:
    """Read the body as a form, or as one JSON object. Raises MalformedBody, HTTPException."""
    declared = request.headers.get("content-type", "")
    if declared.partition(";")[0].strip().lower() != "multipart/form-data":
        return await json_fields(request, "multipart/form-data or application/json")
    body = await body_of(request)
    _, options = parse_options_header(declared)
    if options.get(b"charset", b"utf-8").lower() != b"utf-8":
        raise HTTPException(415, "a form must be in utf-8")
    parser = MultiPartParser(request.headers, request.stream(), max_part_size=len(body) + 1)
    parser.spool_max_size = len(body) + 1  # it is in memory already: no file of it on a disk
    try:
        form = await parser.parse()
    except MultiPartException as exc:
        raise MalformedBody(f"the form cannot be read: {exc.message}") from exc
    parts = [
        (name, await value.read() if isinstance(value, UploadFile) else value)
        for name, value in form.multi_items()
    ]
    await form.close()
    request.state.sent = await asyncio.to_thread(_digest, parts)
    return FormFields(parts)


async def body_of(request: Request) -> bytes:
    """Read the body, if it comes in good time. Raises HTTPException."""
    announced = request.headers.get("content-length", "")
    length = int(announced) if announced.isdecimal() and len(announced) < 12 else 0
    limit_s = max(BODY_TIMEOUT_S, length / SLOWEST_BYTES_S)
    try:
        async with asyncio.timeout(limit_s):
            return await request.body()
    except TimeoutError:
        raise HTTPException(408, f"the body took over {limit_s:.0f} seconds") from None
    except ClientDisconnect:
        raise HTTPException(CLIENT_CLOSED, "the caller left") from None


async def terms_of(
    request: Request,
    *,
    door: str,
    is_attended: bool = True,
    keeps: bool = False,
    deadline_s: float | None = None,
) -> Terms:
    """Read from the headers how something is asked; the body must have been read.

    The official clients say how often they tried and how long they wait. Raises InvalidParams.
    """
    key = request.headers.get("idempotency-key") or None
    if key is not None:
        check_idempotency_key(key, "Idempotency-Key")
    by_port = request.scope.get(PRESET, "")  # the same words mean another profile there
    sent = hashlib.sha256(f"{request.method} {request.url.path} {by_port}\n".encode())
    sent.update(await _sent(request))
    return Terms(
        door=door,
        fingerprint=sent.hexdigest(),
        idempotency_key=key,
        is_attended=is_attended,
        is_retry=_number(request, RETRIES, 0.0) >= 1,
        may_retry=RETRIES in request.headers,
        keeps=keeps,
        patience_s=next((s for name in PATIENCE if (s := _number(request, name, 0.0))), None),
        deadline_s=deadline_s,
    )


def check_idempotency_key(key: str, field: str) -> None:
    """Refuse a key that no database could keep. Raises InvalidParams, naming it by its field."""
    if not 1 <= len(key) <= KEY_LIMIT or not key.isprintable():
        message = f"{field} must have 1 to {KEY_LIMIT} printable characters"
        raise InvalidParams(message, field=field)


def caller_of(request: Request) -> Caller:
    """Who asks; written by `auth`, where keys are asked for."""
    caller = request.scope.get("fluxline.caller")
    return caller if isinstance(caller, Caller) else Caller()


async def _sent(request: Request) -> bytes:
    """What a body says: of a form not how it is divided, which is made up anew each time."""
    if hasattr(request.state, "sent"):
        digest: bytes = request.state.sent
        return digest
    raw = await request.body()
    return raw if len(raw) <= AT_ONCE_BYTES else await asyncio.to_thread(_digest, [("", raw)])


def _digest(parts: Sequence[tuple[str, str | bytes]]) -> bytes:
    told = hashlib.sha256()
    for name, value in parts:
        said = value if isinstance(value, bytes) else value.encode("utf-8", "replace")
        told.update(f"{name}\n{len(said)}\n".encode("utf-8", "replace"))
        told.update(said)
    return told.digest()


def _number(request: Request, header: str, otherwise: float) -> float:
    """A header that a client sets by itself: what cannot be read is not there."""
    try:
        value = float(request.headers.get(header, ""))
    except ValueError:
        return otherwise
    return value if 0 <= value < float("inf") else otherwise


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
