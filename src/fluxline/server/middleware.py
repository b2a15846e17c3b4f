"""What stands around every exchange: its id and headers, the last net, the limit on its body."""

import logging
import time
import uuid
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fluxline.errors import NotReady
from fluxline.server import envelope
from fluxline.server.room import MOST_HELD_BYTES
from fluxline.telemetry import request_id_var
from fluxline.tracing import open_span

OPENAI_VERSION = "2020-10-01"
PROBES = ("/health", "/metrics")
"""Asked every few seconds for ever: nobody wants to read of each time."""
TAKE_PICTURES = (
    "/images/edits",
    "/images/generations",
    "/v1/jobs",
    "/sdapi/v1/img2img",
    "/sdapi/v1/png-info",
    "/mcp",
    "/generate",
    "/submit-request",
)
"""How the paths end where a body may bring a picture."""
OF_MODELS = "/v1/flux-"
"""How those begin that have a model's name at their end."""

_log = logging.getLogger(__name__)


class Exchange:
    """Gives each exchange an id, the headers OpenAI's clients read, and one line in the log.

    Catches what nobody else did. Answers OPTIONS itself, before any route.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = f"req_{uuid.uuid4().hex}"
        token = request_id_var.set(request_id)
        open_span().note({"fluxline.request.id": request_id})
        began = time.perf_counter()
        status = 0

        async def marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers["openai-version"] = OPENAI_VERSION
                headers["openai-processing-ms"] = _since_ms(began)
            await send(message)

        try:
            if scope["method"] == "OPTIONS":
                await Response(status_code=204)(scope, receive, marked)
            else:
                await self._app(scope, receive, marked)
        except Exception:  # noqa: BLE001 - a door: the last net under every route
            _log.exception("unexpected failure")
            if not status:
                await envelope.of_crash()(scope, receive, marked)
        finally:
            path = quote(scope["path"])  # it may hold a line break
            level = logging.DEBUG if path.startswith(PROBES) else logging.INFO
            _log.log(level, "%s %s %d %s ms", scope["method"], path, status, _since_ms(began))
            request_id_var.reset(token)


class BodyLimit:
    """Refuses bodies longer than a limit, announced or not, before they fill the memory.

    with_picture_bytes: the limit where a body may bring a picture. All bodies together may hold
    MOST_HELD_BYTES until they are answered.
    """

    def __init__(self, app: ASGIApp, limit_bytes: int, with_picture_bytes: int) -> None:
        self._app = app
        self._usual, self._with_picture = limit_bytes, with_picture_bytes
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"].rstrip("/")
        takes_picture = path.endswith(TAKE_PICTURES) or path.startswith(OF_MODELS)
        limit = self._with_picture if takes_picture else self._usual
        message = f"the body may have at most {limit / 2**20:.3g} MiB"
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdigit() and int(announced) > limit:
            answer = envelope.failure(413, message, code="payload_too_large")
            await answer(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            received = await receive()
            length = len(received.get("body", b""))
            seen += length
            self._held += length
            if seen > limit:
                raise HTTPException(413, message)
            if self._held > max(MOST_HELD_BYTES, limit):
                raise NotReady("too many large bodies are held at once", retry_after_s=5.0)
            return received

        try:
            await self._app(scope, counted, send)
        finally:
            self._held -= seen


def _since_ms(began: float) -> str:
    return str(round(1000 * (time.perf_counter() - began)))
