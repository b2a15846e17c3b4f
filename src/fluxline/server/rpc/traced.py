"""A span around every gRPC call that is no probe."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import grpc

from fluxline.tracing import Tracing

PROBES = ("Ping", "Metrics")
Code = grpc.StatusCode
FAULTS = (Code.UNKNOWN, Code.DEADLINE_EXCEEDED, Code.INTERNAL, Code.UNAVAILABLE)
"""Ends of a call that are the server's fault; the others are the caller's."""

Context: TypeAlias = Any  # grpc has no types
Details: TypeAlias = Any
Handler: TypeAlias = Any
Requests: TypeAlias = AsyncIterator[Any]


class Traced(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """Goes on with the trace that a caller names in `traceparent`, or begins one.

    service: whose calls, as `KeyFirst` hands them on; health and reflection are others'.
    """

    def __init__(self, tracing: Tracing, service: str) -> None:
        self._tracing, self._service = tracing, service

    async def intercept_service(
        self, continuation: Callable[[Details], Awaitable[Handler]], details: Details
    ) -> Handler:
        """Put the span around what answers a call."""
        handler = await continuation(details)
        service, _, method = details.method.lstrip("/").partition("/")
        if handler is None or service != self._service or method in PROBES:
            return handler

        async def one(requests: Requests, context: Context) -> Any:
            with self._span(details, context):
                return await handler.stream_unary(requests, context)

        async def many(requests: Requests, context: Context) -> AsyncIterator[Any]:
            with self._span(details, context):
                async for answer in handler.stream_stream(requests, context):
                    yield answer

        coding = (handler.request_deserializer, handler.response_serializer)
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(many, *coding)
        return grpc.stream_unary_rpc_method_handler(one, *coding)

    @contextmanager
    def _span(self, details: Details, context: Context) -> Iterator[None]:
        headers = {k: v for k, v in details.invocation_metadata or () if isinstance(v, str)}
        name = details.method.lstrip("/")
        values = {"rpc.system.name": "grpc", "rpc.method": name}
        span, code = self._tracing.answer(name, headers, values), Code.UNKNOWN
        with span.here():
            try:
                yield
                code = Code.OK
            except (asyncio.CancelledError, GeneratorExit):
                code = Code.CANCELLED
                raise
            finally:
                code = context.code() or code
                span.note({"rpc.response.status_code": code.name})
                if code in FAULTS:
                    span.fail(code.name)
                span.end()
