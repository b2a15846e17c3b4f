"""A span around every HTTP exchange but those of probes."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fluxline.server.auth import METRICS, PUBLIC
from fluxline.tracing import SILENT, Span, Tracing

METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"))
"""Others are words of the caller's own, and told as none."""


class Traced:
    """Goes on with the trace that a caller names in `traceparent`, or begins one.

    The path is told as its route alone: what callers put into a path is theirs.
    """

    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        self._app, self._tracing = app, tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102
        if scope["type"] != "http" or scope["path"] in PUBLIC | METRICS:
            await self._app(scope, receive, send)
            return
        method = scope["method"] if scope["method"] in METHODS else "_OTHER"
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        values = {"http.request.method": method, "url.scheme": scope["scheme"]}
        with self._tracing.answer(method, headers, values) as span:

            async def watched(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.note({"http.response.status_code": message["status"]})
                    if message["status"] >= 500:
                        span.fail(str(message["status"]))
                await send(message)

            scope["fluxline.span"] = span
            try:
                await self._app(scope, receive, watched)
            finally:
                if route := _route(scope):
                    span.rename(f"{method} {route}")
                    span.note({"http.route": route})


def _route(scope: Scope) -> str:
    """The route that answered, as it is declared; empty: none did."""
    if route := scope.get("route"):
        return str(route.path)
    is_plain = "endpoint" in scope and not scope["path_params"]
    return str(scope["path"]) if is_plain else ""


def span_of(scope: Scope) -> Span:
    """The span around an exchange, for who answers it in a task that it did not begin."""
    span = scope.get("fluxline.span")
    return span if isinstance(span, Span) else SILENT
