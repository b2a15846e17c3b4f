"""The gRPC server beside the HTTP one: the service, health and reflection on the same loop."""

import asyncio
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from fluxline.errors import ConfigError
from fluxline.server.exchange import BODY_TIMEOUT_S
from fluxline.server.room import MOST_HELD_BYTES, Room
from fluxline.server.rpc import image_gen_pb2 as pb
from fluxline.server.rpc.door import ImageGen
from fluxline.server.rpc.image_gen_pb2_grpc import add_ImageGenServicer_to_server
from fluxline.server.rpc.traced import Traced
from fluxline.tracing import OFF, Tracing

SEND_BYTES = 64 * 2**20
UNASKED_BYTES = 2**20  # of a message that come before it has room: 20 MB/s at 50 ms to a caller
ROOM_S = 5.0  # for which a message waits until others have left it room

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
            interceptors=[*traced, KeyFirst(door, self._name, most_bytes)],
            options=[
                ("grpc.max_send_message_length", SEND_BYTES),
                ("grpc.max_receive_message_length", most_bytes),
                ("grpc.so_reuseport", 0),
                ("grpc.http2.bdp_probe", 0),  # which would let 6 MiB of a message come unasked
                ("grpc.http2.lookahead_bytes", UNASKED_BYTES),
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
    together may hold MOST_HELD_BYTES until they are answered: since nobody knows how long one is
    before it is there, each takes the room of the longest until then.

    service: whose calls; health and reflection are for anybody. most_bytes: of a message.
    """

    def __init__(self, door: ImageGen, service: str, most_bytes: int) -> None:
        self._door, self._service, self._most = door, service, most_bytes
        self._room = Room(max(MOST_HELD_BYTES, most_bytes))

    async def intercept_service(
        self, continuation: Callable[[Details], Awaitable[Handler]], details: Details
    ) -> Handler:
        """Put the look at the key before what answers a call."""
        handler = await continuation(details)
        if handler is None or details.method.split("/")[1:-1] != [self._service]:
            return handler

        async def one(_: object, context: Context) -> Any:
            await self._door.check(context)
            async with self._taken_in(context) as message:
                return await handler.unary_unary(message.pop(), context)

        async def many(_: object, context: Context) -> AsyncIterator[Any]:
            await self._door.check(context)
            async with self._taken_in(context) as message:
                async for answer in handler.unary_stream(message.pop(), context):
                    yield answer

        coding = (handler.request_deserializer, handler.response_serializer)
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(many, *coding)
        return grpc.stream_unary_rpc_method_handler(one, *coding)

    @asynccontextmanager
    async def _taken_in(self, context: Context) -> AsyncGenerator[list[Any]]:
        """The one message of a call, which has its room before it comes until it is answered.

        In a list, for who answers to take it out of: nobody else keeps it.
        """
        try:
            await self._room.take(self._most, ROOM_S)
        except TimeoutError:
            message = "too many large messages are held at once"
            await context.abort(Code.UNAVAILABLE, message, (("retry-after", "5"),))
        size = self._most
        try:
            taken = [await _read(context)]
            size = taken[0].ByteSize()
            self._room.leave(self._most - size)
            yield taken
        except grpc.aio.AbortError as exc:
            _unlink(exc)
            raise
        finally:
            self._room.leave(size)


def _unlink(abort: BaseException) -> None:
    """Have the end of a call keep no message.

    grpc keeps it with the call; it and what led to it keep the frames that held the message: rings,
    which would be there until they are collected.
    """
    if abort.__context__:
        abort.__context__.__traceback__ = None  # others may have it: their frames are not ours
    traceback.clear_frames(abort.__traceback__)


async def _read(context: Context) -> Any:
    """Take a message in, if it comes in good time; end the call of who sends none.

    What reads is not cancelled but ends with its call: grpc would write to what it has freed. Nor
    is it grpc's iterator, which keeps the message as long as itself, in a ring with the call.
    """
    reading = asyncio.ensure_future(context.read())
    reading.add_done_callback(_note)
    await asyncio.wait({reading}, timeout=BODY_TIMEOUT_S)
    if not reading.done():
        message = f"the message took over {BODY_TIMEOUT_S:.0f} seconds"
        await context.abort(Code.DEADLINE_EXCEEDED, message)
    if (request := reading.result()) is grpc.aio.EOF:
        await context.abort(Code.INVALID_ARGUMENT, "a call has one message")
    return request


def _note(reading: asyncio.Future[Any]) -> None:
    """Look how it ended: nobody else does where its call ended first, and asyncio complains."""
    if not reading.cancelled():
        reading.exception()
