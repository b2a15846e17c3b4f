"""The gRPC server beside the HTTP one: the service, health and reflection on the same loop."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from fluxline.errors import ConfigError
from fluxline.server.middleware import MOST_HELD_BYTES
from fluxline.server.rpc import image_gen_pb2 as pb
from fluxline.server.rpc.door import ImageGen
from fluxline.server.rpc.image_gen_pb2_grpc import add_ImageGenServicer_to_server
from fluxline.server.rpc.traced import Traced
from fluxline.tracing import OFF, Tracing

SEND_BYTES = 64 * 2**20

Context: TypeAlias = Any  # grpc has no types
Details: TypeAlias = Any
Handler: TypeAlias = Any
Code = grpc.StatusCode


class GrpcServer:
    """Listens from `start` on. most_bytes: of a message that comes in. Lives on one event loop."""

    def __init__(
        self, door: ImageGen, address: str, tracing: Tracing = OFF, *, most_bytes: int
    ) -> None:
        """Bind. Raises ConfigError."""
        self._name = pb.DESCRIPTOR.services_by_name["ImageGen"].full_name
        traced = [Traced(tracing, self._name)] if tracing.is_on else []
        self._server = grpc.aio.server(
            interceptors=[*traced, KeyFirst(door, self._name)],
            options=[
                ("grpc.max_send_message_length", SEND_BYTES),
                ("grpc.max_receive_message_length", most_bytes),
                ("grpc.so_reuseport", 0),
            ],
        )
        self._health = health.aio.HealthServicer()
        add_ImageGenServicer_to_server(door, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (self._name, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        try:
            self.port = self._server.add_insecure_port(address)
        except RuntimeError as exc:
            raise ConfigError(f"cannot listen on {address} for gRPC") from exc

    async def start(self) -> None:
        """Begin to answer; not yet healthy."""
        await self._server.start()

    async def tell(self, *, is_ready: bool) -> None:
        """Say whether pictures can be asked for, to whoever watches the health."""
        status = health_pb2.HealthCheckResponse
        word = status.SERVING if is_ready else status.NOT_SERVING
        for name in ("", self._name):
            await self._health.set(name, word)

    async def stop(self, grace_s: float) -> None:
        """Let the last answers leave, then end."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)


class KeyFirst(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """Looks at a caller's key before a byte of the message is taken in, as over HTTP.

    grpc takes the one message of a call in before it calls what answers; but those of a stream
    only when that asks for them, so each call is answered as a stream of one message. All messages
    together may hold MOST_HELD_BYTES until they are answered.

    service: whose calls; health and reflection are for anybody.
    """

    def __init__(self, door: ImageGen, service: str) -> None:
        self._door, self._service = door, service
        self._held = 0

    async def intercept_service(
        self, continuation: Callable[[Details], Awaitable[Handler]], details: Details
    ) -> Handler:
        """Put the look at the key before what answers a call."""
        handler = await continuation(details)
        if handler is None or details.method.split("/")[1:-1] != [self._service]:
            return handler

        async def one(requests: AsyncIterator[Any], context: Context) -> Any:
            await self._door.check(context)
            async with self._taken_in(requests, context) as request:
                return await handler.unary_unary(request, context)

        async def many(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
            await self._door.check(context)
            async with self._taken_in(requests, context) as request:
                async for answer in handler.unary_stream(request, context):
                    yield answer

        coding = (handler.request_deserializer, handler.response_serializer)
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(many, *coding)
        return grpc.stream_unary_rpc_method_handler(one, *coding)

    @asynccontextmanager
    async def _taken_in(
        self, requests: AsyncIterator[Any], context: Context
    ) -> AsyncGenerator[Any]:
        """The one message of a call, counted until it is answered."""
        request: Any = await anext(requests, None)
        if request is None:
            await context.abort(Code.INVALID_ARGUMENT, "a call has one message")
        size = request.ByteSize()
        if self._held + size > MOST_HELD_BYTES:
            message = "too many large messages are held at once"
            await context.abort(Code.UNAVAILABLE, message, (("retry-after", "5"),))
        self._held += size
        try:
            yield request
        finally:
            self._held -= size
