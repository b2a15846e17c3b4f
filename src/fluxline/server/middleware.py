"""What stands around every exchange: its id and headers, the last net, the limit on its body."""

import logging
import time
import uuid
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fluxline.server import envelope
from fluxline.telemetry import request_id_var
from fluxline.tracing import open_span

OPENAI_VERSION = "2020-10-01"

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
            _log.info("%s %s %d %s ms", scope["method"], path, status, _since_ms(began))
            request_id_var.reset(token)


class BodyLimit:
    """Refuses bodies longer than a limit, announced or not, before they fill the memory."""

    def __init__(self, app: ASGIApp, limit_bytes: int) -> None:
        self._app = app
        self._limit_bytes = limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdigit() and int(announced) > self._limit_bytes:
            answer = envelope.failure(413, self._message(), code="payload_too_large")
            await answer(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._limit_bytes:
                raise HTTPException(413, self._message())
            return message

        await self._app(scope, counted, send)

    def _message(self) -> str:
        return f"the body may have at most {self._limit_bytes} bytes"


def _since_ms(began: float) -> str:
    return str(round(1000 * (time.perf_counter() - began)))
