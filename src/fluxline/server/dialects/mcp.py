"""MCP, by which agents draw: calls of tools to requests, and pictures back.

Over the official package, whose business are sessions, versions of the protocol and the spelling
of messages. It takes long to import: `mcp_routes` does so at the first call.
"""

import asyncio
import base64
import json
import logging
import math
import uuid
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from importlib.metadata import version
from typing import Any, TypeAlias

import mcp_types as types
from mcp import MCPError
from mcp.server import Server, ServerRequestContext
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from fluxline.errors import (
    CapacityError,
    FluxlineError,
    InvalidParams,
    RequestError,
    StorageError,
    error_of,
)
from fluxline.jobs import JobRow, JobState
from fluxline.request import (
    GenerationRequest,
    ImageReady,
    ImageResult,
    Progress,
    Queued,
    best,
    failure_of,
)
from fluxline.server import envelope
from fluxline.server.body import (
    in_callers_words,
    read_deadline,
    read_request,
    refuse_unread,
    warnings_of,
)
from fluxline.server.choice import choose
from fluxline.server.dialects import discovery_routes, mcp_tools
from fluxline.server.exchange import caller_of, unless_gone
from fluxline.server.fields import Fields, MissingParam
from fluxline.server.links import Links
from fluxline.server.traced import span_of
from fluxline.server.uploads import Uploads, find
from fluxline.service import Service, Terms, Ticket
from fluxline.service.record import request_of

MOST_SESSIONS = 1000  # of one key
ANSWER_BYTES = 2**20 - 2**14
"""Of one answer, all told: the official client takes 1 MiB, other hosts about as much."""

Context: TypeAlias = ServerRequestContext[Any, Request]  # Any: the package's, unused
Told: TypeAlias = dict[str, Any]  # Any: JSON
Call: TypeAlias = Callable[[Fields, Context], Coroutine[Any, Any, types.CallToolResult]]

_log = logging.getLogger(__name__)


class Sessions:
    """The sessions of all clients, of each key by themselves: what one key began, another can
    neither use nor be locked out by. Lives on one event loop.
    """

    def __init__(self, service: Service, links: Links, uploads: Uploads, *, max_n: int) -> None:
        self._tools = Tools(service, links, uploads, max_n=max_n)
        self._of: dict[str, asyncio.Future[StreamableHTTPSessionManager]] = {}
        self._keeping: set[asyncio.Task[None]] = set()
        self._closing = asyncio.Event()

    @asynccontextmanager
    async def run(self) -> AsyncGenerator[None]:
        """Keep them until left; then all end."""
        try:
            yield
        finally:
            self._closing.set()
            await asyncio.gather(*self._keeping)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP exchange."""
        owner = caller_of(Request(scope)).owner
        scope["user"] = AuthenticatedUser(AccessToken(token="", client_id=owner, scopes=[]))
        if owner not in self._of:
            self._of[owner] = asyncio.get_running_loop().create_future()
            self._keeping.add(asyncio.create_task(self._keep(self._of[owner])))
        manager = await asyncio.shield(self._of[owner])  # it is for who comes next, too
        await manager.handle_request(scope, receive, send)

    async def _keep(self, opened: "asyncio.Future[StreamableHTTPSessionManager]") -> None:
        """Hold one key's sessions open: one and the same task must begin and end them."""
        server: Server[Any] = Server(
            "fluxline",
            title="Fluxline",
            version=version("fluxline"),
            instructions=mcp_tools.INSTRUCTIONS,
            on_list_tools=self._tools.listed,
            on_call_tool=self._tools.called,
        )
        manager = StreamableHTTPSessionManager(server, max_sessions=MOST_SESSIONS)
        try:
            async with manager.run():
                opened.set_result(manager)
                await self._closing.wait()
        finally:
            opened.cancel()  # unless it was told: who waits for it must not wait for ever


class Tools:
    """The tools over a service."""

    def __init__(self, service: Service, links: Links, uploads: Uploads, *, max_n: int) -> None:
        self._service, self._links, self._max_n = service, links, max_n
        self._uploads = uploads
        self._told = types.ListToolsResult(tools=mcp_tools.tools(max_n))
        self._calls: dict[str, Call] = {
            "generate_image": self._generate,
            "list_models": self._list_models,
            "get_job": self._get_job,
            "cancel_job": self._cancel_job,
        }

    async def listed(self, context: Context, params: object) -> types.ListToolsResult:
        """List them."""
        return self._told

    async def called(
        self, context: Context, params: types.CallToolRequestParams
    ) -> types.CallToolResult:
        """Call one. What goes wrong is an answer that an agent can read and act upon."""
        call = self._calls.get(params.name)
        if call is None:
            message = f"no tool {params.name[:64]!r}; there are {', '.join(self._calls)}"
            raise MCPError(types.INVALID_PARAMS, message)
        fields = Fields(params.arguments or {})
        try:
            with span_of(_request(context).scope).here():
                return await unless_gone(_request(context), call(fields, context))
        except RequestError as exc:
            return _refused(in_callers_words(exc, fields))
        except FluxlineError as exc:
            return _refused(exc)
        except HTTPException as exc:  # the caller left, and nobody reads this
            return _refused(RequestError(exc.detail))
        except Exception:  # noqa: BLE001 - a door: the caller gets a number, the log has it all
            _log.exception("unexpected failure")
            return _refused(FluxlineError("internal error"))

    # ---- the tools

    async def _generate(self, fields: Fields, context: Context) -> types.CallToolResult:
        request_id, scope = f"job_{uuid.uuid4().hex}", _request(context).scope
        choice = await choose(fields, self._service.roster, scope)
        asked = read_request(fields, choice, max_n=self._max_n, request_id=request_id)
        if not fields.given("output_format"):
            asked = replace(asked, output_format=mcp_tools.FORMAT)
        waits = fields.boolean("wait") is not False
        deadline_s = read_deadline(fields)
        warnings = warnings_of(fields, asked)
        if found := find(fields):
            asked, more = await self._uploads.begin(found, asked, self._service.vet(asked))
            warnings += more
        terms = Terms(door="mcp", is_attended=waits, keeps=True, deadline_s=deadline_s)
        caller = caller_of(_request(context))
        async with await self._service.submit(asked, terms, caller) as ticket:
            told: Told = {"id": ticket.job_id, "status": JobState.QUEUED, "warnings": warnings}
            if not waits:
                return _answer(told)
            images = await _drawn(ticket, asked, context)
        told |= {"status": JobState.DONE, "images": await self._spelt(images, context)}
        return _answer(told, images)

    async def _list_models(self, fields: Fields, context: Context) -> types.CallToolResult:
        refuse_unread(fields)
        standings = self._service.roster.all
        return _answer({"models": [discovery_routes.model(one) for one in standings]})

    async def _get_job(self, fields: Fields, context: Context) -> types.CallToolResult:
        job_id = _job_id(fields)
        row = await self._service.job(job_id, owner=caller_of(_request(context)).scope)
        if row is None:
            raise _unknown(job_id)
        told = _standing(row)
        if row.state != JobState.DONE:
            return _answer(told)
        try:
            async with await self._service.follow(row, with_files=True) as ticket:
                images = await _drawn(ticket, request_of(row), context)
        except StorageError as exc:
            return _answer({**told, "warnings": [exc.message]})
        return _answer({**told, "images": await self._spelt(images, context)}, images)

    async def _cancel_job(self, fields: Fields, context: Context) -> types.CallToolResult:
        job_id = _job_id(fields)
        row = await self._service.cancel(job_id, owner=caller_of(_request(context)).scope)
        if row is None:
            raise _unknown(job_id)
        return _answer(_standing(row))

    async def _spelt(self, images: Sequence[ImageResult], context: Context) -> list[Told]:
        """Tell of pictures what their bytes do not, so that each can be found and drawn again."""
        request = _request(context)
        return [
            {
                "url": await self._links.of(image.stored, request) if image.stored else None,
                "seed": image.seed,
                "width": image.width,
                "height": image.height,
                "format": image.format,
                "model": image.model,
                "backend": image.backend,
                **({} if image.score is None else {"score": image.score}),
                **({"warnings": image.warnings} if image.warnings else {}),
            }
            for image in images
        ]


async def _drawn(ticket: Ticket, asked: GenerationRequest, context: Context) -> list[ImageResult]:
    """Follow a request to its end, telling how far it is. Raises what it failed with."""
    images: list[ImageResult] = []
    done: dict[int, int] = {}  # evaluations of each picture
    told = -1
    async for event in ticket:
        if error := failure_of(event):
            raise error
        match event:
            case Queued(position=position) if told < 0:
                told = 0
                await context.session.report_progress(0, None, f"waits behind {position}")
            case Progress(index=index, evaluation=evaluation, total=total):
                done[index] = evaluation
                if (now := sum(done.values())) > told:  # less, when a worker died
                    told = now
                    await context.session.report_progress(now, total * asked.count, "draws")
            case ImageReady(image=image):
                images.append(image)
    return best(images, asked.top_k)


def _answer(told: Told, images: Sequence[ImageResult] = ()) -> types.CallToolResult:
    """Spell an answer: as many of the pictures as clients take, and what is told of all."""
    left = ANSWER_BYTES - sum(len(json.dumps(form)) for form in (told, json.dumps(told)))
    shown: list[types.ContentBlock] = []
    for image in images:
        if (size := 4 * math.ceil(len(image.data) / 3)) <= left:
            left -= size
            data = base64.b64encode(image.data).decode()
            shown.append(types.ImageContent(data=data, mime_type=f"image/{image.format}"))
    if len(shown) < len(images):
        hidden = (
            f"{len(images) - len(shown)} of {len(images)} pictures are too large to be shown here"
        )
        told = {**told, "warnings": [*told["warnings"], f"{hidden}: follow their url"]}
    return types.CallToolResult(
        content=[*shown, types.TextContent(text=json.dumps(told))], structured_content=told
    )


def _refused(error: FluxlineError) -> types.CallToolResult:
    """Spell an error for an agent: what was wrong, and when to come again."""
    _, told = envelope.spelt(error)
    message = str(told["message"])
    if isinstance(error, CapacityError):
        message = f"{message}; try again in {math.ceil(error.retry_after_s)} s"
    return types.CallToolResult(
        content=[types.TextContent(text=message)],
        structured_content={"error": {**told, "message": message}},
        is_error=True,
    )


def _standing(row: JobRow) -> Told:
    """Tell where a job stands."""
    told: Told = {"id": row.id, "status": row.state, "warnings": []}
    if row.error_code is None:
        return told
    _, error = envelope.spelt(error_of(row.error_code, row.error_message or ""))
    return {**told, "error": error}


def _job_id(fields: Fields) -> str:
    job_id = fields.text("job_id")
    if job_id is None:
        raise MissingParam("job_id is required: generate_image gives it", field="job_id")
    refuse_unread(fields)
    return job_id


def _unknown(job_id: str) -> InvalidParams:
    return InvalidParams(f"job_id: there is no job {job_id[:64]!r}", field="job_id")


def _request(context: Context) -> Request:
    assert context.request is not None  # every call comes over HTTP
    return context.request
