"""The address of MCP, `/mcp`: who may come in, and when the package behind it is loaded and left.

What is said there is the business of `mcp`, which is imported at the first call: the package
takes longer to import than all else in this process.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from fluxline.errors import NotReady
from fluxline.server import envelope
from fluxline.server.exchange import body_of
from fluxline.server.links import Links
from fluxline.server.uploads import Uploads
from fluxline.service import Service

if TYPE_CHECKING:
    from fluxline.server.dialects.mcp import Sessions

ANSWER_S = 5.0  # for the last answers to leave, once nothing is drawn any more

_log = logging.getLogger(__name__)


def is_installed() -> bool:
    """Whether the package is there."""
    return find_spec("mcp") is not None


def mcp_door(service: Service, links: Links, uploads: Uploads, *, max_n: int) -> "McpDoor":
    """Make the door of a service."""

    def load() -> "Sessions":
        from fluxline.server.dialects.mcp import Sessions

        return Sessions(service, links, uploads, max_n=max_n)

    return McpDoor(load)


class McpDoor:
    """An ASGI application that opens at its first call. Lives on one event loop.

    load: imports the package, away from the loop. Raises ImportError.
    """

    def __init__(self, load: "Callable[[], Sessions]") -> None:
        self._load = load
        self._loading = asyncio.Lock()
        self._sessions: Sessions | None = None
        self._opened, self._closing, self._idle = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._idle.set()
        self._keeping: asyncio.Task[None] | None = None
        self._answering = 0  # calls, without the lines that are only listened on

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP exchange."""
        request = Request(scope, receive)
        try:
            sessions = await self._open()
        except NotReady as exc:
            await envelope.of_error(exc)(scope, receive, send)
            return
        except ImportError:
            message = "MCP is not installed here: pip install 'fluxline[mcp]'"
            answer = envelope.failure(501, message, kind="server_error", code="not_installed")
            await answer(scope, receive, send)
            return
        if request.method != "POST":
            await sessions.handle(scope, receive, send)
            return
        body, sent = await body_of(request), _Sent(send)
        with self._answer():
            try:
                await sessions.handle(scope, _replayed(body, receive), sent)
            except Exception:
                if not sent.is_whole:
                    raise
                _log.debug("a session ended while a notice to it was read", exc_info=True)

    async def close(self) -> None:
        """Let the last answers leave, then end every session and the lines still open."""
        self._closing.set()
        if self._keeping:
            await self._keeping

    async def _open(self) -> "Sessions":
        if self._closing.is_set():
            raise NotReady("not ready: the server is shutting down", retry_after_s=2.0)
        async with self._loading:
            if self._sessions is None:
                self._sessions = await asyncio.to_thread(self._load)
                self._keeping = asyncio.create_task(self._keep(self._sessions))
        await self._opened.wait()
        return self._sessions

    async def _keep(self, sessions: "Sessions") -> None:
        """Hold the sessions open: one and the same task must begin and end them."""
        async with sessions.run():
            self._opened.set()
            await self._closing.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ANSWER_S):
                    await self._idle.wait()

    @contextlib.contextmanager
    def _answer(self) -> Iterator[None]:
        self._answering += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._answering -= 1
            if not self._answering:
                self._idle.set()


class _Sent:
    """Passes an answer on until it is whole: the package may begin another when a client left."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.is_whole = False

    async def __call__(self, message: Message) -> None:
        if self.is_whole:
            return
        await self._send(message)
        is_body = message["type"] == "http.response.body"
        self.is_whole = is_body and not message.get("more_body", False)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Give a body that was read to who reads it next, then what comes after it."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return first.pop() if first else await receive()

    return replay
