"""Who is at the door: a key for everything but what is public, on every route alike.

Without any key in the database or the environment the doors are open, and `serve` lets nobody in
but this machine. Which key may do what is said by the routes.
"""

import asyncio
import base64

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from fluxline.errors import NotReady
from fluxline.jobs import Key, KeyRing
from fluxline.jobs import Scope as KeyScope
from fluxline.server import envelope
from fluxline.service import Caller

PUBLIC = frozenset({"/", "/health", "/health/live", "/health/ready", "/health/startup"})
METRICS = frozenset({"/metrics", "/metrics/prometheus"})
SIGNED = "/files/"  # a link is its own permission
HEADERS = ("api-key", "x-api-key", "x-key")  # of Azure, Anthropic and BFL
KEY_LIMIT = 512  # characters


class Auth:
    """Refuses who has no good key, and writes who it is for `exchange.caller_of`."""

    def __init__(self, app: ASGIApp, ring: KeyRing, *, opens_metrics: bool) -> None:
        self._app, self._ring = app, ring
        self._public = PUBLIC | METRICS if opens_metrics else PUBLIC

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        presented = _presented(Headers(scope=scope))
        try:
            key = await asyncio.to_thread(self._ring.check, presented) if presented else None
        except NotReady as exc:
            await envelope.of_error(exc)(scope, receive, send)
            return
        if key is not None:
            scope["fluxline.caller"] = caller_of_key(key)
        elif not (scope["path"] in self._public or scope["path"].startswith(SIGNED)):
            await _refusal(presented)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _presented(headers: Headers) -> str:
    """The key that was sent, wherever the clients of the many protocols put it."""
    kind, _, rest = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return rest.strip()[:KEY_LIMIT]
    if kind.lower() == "basic":
        try:
            return base64.b64decode(rest, validate=True).decode().partition(":")[2][:KEY_LIMIT]
        except ValueError:  # not ASCII, not base64, not UTF-8
            return ""
    return next((headers[name][:KEY_LIMIT] for name in HEADERS if name in headers), "")


def _refusal(presented: str) -> ASGIApp:
    # LiteLLM knows a wrong key from a wrong field by OpenAI's own first words alone.
    wrong = "Incorrect API key provided: it is not good here"
    message = wrong if presented else "a key is needed: Authorization: Bearer"
    headers = {"www-authenticate": 'Bearer, Basic realm="fluxline"'}
    return envelope.failure(401, message, code="invalid_api_key", headers=headers)


def caller_of_key(key: Key) -> Caller:
    """What a key lets its holder do."""
    return Caller(
        owner=key.id,
        priority=key.priority,
        most_open=key.most_open,
        rate=key.rate,
        is_admin=KeyScope.ADMIN in key.scopes,
    )
