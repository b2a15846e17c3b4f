"""The gRPC server beside the HTTP one: the service, health and reflection on the same loop."""

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from fluxline.errors import ConfigError
from fluxline.server.rpc import image_gen_pb2 as pb
from fluxline.server.rpc.door import ImageGen
from fluxline.server.rpc.image_gen_pb2_grpc import add_ImageGenServicer_to_server
from fluxline.server.rpc.traced import Traced
from fluxline.tracing import OFF, Tracing

SEND_BYTES = 64 * 2**20
RECEIVE_BYTES = 8 * 2**20  # before its key is looked at, so less than over HTTP


class GrpcServer:
    """Listens from `start` on. Lives on one event loop."""

    def __init__(self, door: ImageGen, address: str, tracing: Tracing = OFF) -> None:
        """Bind. Raises ConfigError."""
        self._name = pb.DESCRIPTOR.services_by_name["ImageGen"].full_name
        self._server = grpc.aio.server(
            interceptors=[Traced(tracing, self._name)] if tracing.is_on else [],
            options=[
                ("grpc.max_send_message_length", SEND_BYTES),
                ("grpc.max_receive_message_length", RECEIVE_BYTES),
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
