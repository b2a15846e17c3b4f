"""`fluxline serve`: the API process from its start to its last answer, signals included."""

import asyncio
import contextlib
import logging
import signal
import socket
import uuid
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

import uvicorn

from fluxline.errors import ConfigError, NotReady, StorageError
from fluxline.fleet.local import LocalReplica
from fluxline.fleet.pool import Pool
from fluxline.fleet.process import ENGINE, WorkerCommand
from fluxline.fleet.watch import Patience
from fluxline.jobs import Database, JobStore, KeyRing, WebhookStore
from fluxline.server.app import create_app
from fluxline.server.connection import Connection, allow_many_connections, listen
from fluxline.server.dialects.webhooks import Webhooks
from fluxline.server.links import Links
from fluxline.server.origin import is_loopback
from fluxline.server.outside import Outside
from fluxline.service import Service
from fluxline.settings import DEFAULT_MODEL, Settings
from fluxline.storage import Pictures, open_pictures
from fluxline.telemetry import configure_logging

if TYPE_CHECKING:
    from fluxline.server.rpc.serve import GrpcServer

EXIT_OK = 0
EXIT_CANNOT_START = 2
HEALTH_S = 1.0  # between two looks that gRPC's health watchers hear of
ANSWER_GRACE_S = 5  # for the last answers to leave, once nothing is drawn any more

_log = logging.getLogger(__name__)


def run(settings: Settings, *, engine: str = ENGINE) -> int:
    """Serve until told to stop; return the exit code (2: it could not start, or not go on).

    `engine` is the module:factory that the worker opens in place of Fluxline's own.
    """
    configure_logging(settings.log_level, settings.log_format)
    allow_many_connections()
    try:
        listener = listen(settings.host, settings.port)
    except ConfigError as exc:
        _log.error("%s", exc.message)
        return EXIT_CANNOT_START
    commands = [
        WorkerCommand(
            model=settings.model,
            device=settings.device,
            engine=engine,
            member=member,
            members=settings.replicas,
            log_level=settings.log_level,
            log_format=settings.log_format,
        )
        for member in range(settings.replicas)
    ]
    with listener, contextlib.ExitStack() as stack:
        try:
            ground = _prepare(settings, listener, stack)
        except (ConfigError, NotReady) as exc:
            _log.error("%s", exc.message)
            return EXIT_CANNOT_START
        return asyncio.run(_serve(settings, commands, ground))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ground:
    """What a server stands on."""

    listener: socket.socket
    database: Database
    pictures: Pictures
    ring: KeyRing | None  # None: no key is asked for


def _prepare(settings: Settings, listener: socket.socket, stack: contextlib.ExitStack) -> _Ground:
    """Open what the server stands on, before a model is loaded. Raises ConfigError, NotReady."""
    port = listener.getsockname()[1]
    database = Database(settings.database_url(port))
    stack.callback(database.close)
    database.own()
    pictures = open_pictures(
        settings.storage or str(settings.data_folder(port) / "pictures"),
        public_url=settings.storage_url or None,
    )
    ring = _ring(settings, database)
    if settings.grpc_port is not None and ring is None:
        raise ConfigError(
            "gRPC needs a key: make one with `fluxline keys create NAME`, or set API_KEYS"
        )
    return _Ground(listener=listener, database=database, pictures=pictures, ring=ring)


async def _serve(settings: Settings, commands: list[WorkerCommand], ground: _Ground) -> int:
    database, pictures, ring = ground.database, ground.pictures, ground.ring
    patience = Patience(stuck_s=settings.stuck_s or None)
    replica = Pool([LocalReplica(command, patience=patience) for command in commands])
    service = Service(
        replica,
        JobStore(database),
        pictures,
        queue_limit=settings.queue_limit,
        queue_s=settings.queue_s,
        window=settings.in_flight,
        keep_days=settings.keep_days,
        keep_bytes=None if settings.keep_gb is None else int(settings.keep_gb * 2**30),
        holder=f"{uuid.uuid4()}" if database.is_shared else "local",
        aliases={settings.model: DEFAULT_MODEL, **settings.aliases},  # a hub id names what it is
    )
    links = Links(pictures, database.secret, base_url=settings.public_url)
    webhooks = Webhooks(WebhookStore(database), links, Outside(settings.webhook_hosts))
    app = create_app(
        service,
        links,
        webhooks,
        max_n=settings.max_n,
        max_batch=settings.max_batch,
        body_limit_bytes=settings.body_limit_bytes,
        ring=ring,
        has_grpc=settings.grpc_port is not None,
        pages=[page.strip().rstrip("/") for page in settings.cors.split(",") if page.strip()],
        opens_metrics=settings.open_metrics or is_loopback(settings.host),
    )
    server = _Server(_config(app))
    try:
        await _try_out(pictures)
        rpc = await _open_rpc(settings, service, ground)
        await service.start()
    except (ConfigError, NotReady) as exc:
        _log.error("%s", exc.message)
        return EXIT_CANNOT_START
    with _signals() as signals:
        open_lines = contextlib.AsyncExitStack()
        await open_lines.enter_async_context(app.router.lifespan_context(app))
        replica.start()
        serving = asyncio.create_task(server.serve(sockets=[ground.listener]))
        _announce(ground.listener, settings, rpc)
        sideline = [_tell_when_ready(replica), _tell_health(rpc, service), webhooks.run()]
        running = [asyncio.create_task(work) for work in sideline]
        try:
            await _first(signals.get(), replica.ended(), asyncio.shield(serving))
            is_broken = replica.state == "failed"
            if not is_broken:
                await _wind_down(service, signals, settings.drain_s)
        finally:
            for task in running:
                task.cancel()
            await replica.stop()
            await service.close()
            await open_lines.aclose()  # uvicorn would wait for them first
            server.should_exit = True
            if rpc:
                await rpc.stop(ANSWER_GRACE_S)
            await serving
    if is_broken:
        _log.error("cannot go on: %s", replica.reason)
        return EXIT_CANNOT_START
    return EXIT_OK


async def _try_out(pictures: Pictures) -> None:
    """See that pictures can be stored; a store that is away is waited for. Raises ConfigError."""
    try:
        await pictures.try_out()
    except StorageError as exc:
        _log.warning("%s; pictures wait for it", exc.message)


async def _open_rpc(settings: Settings, service: Service, ground: _Ground) -> "GrpcServer | None":
    """Open the gRPC door, if it is wanted. Raises ConfigError."""
    if settings.grpc_port is None or ground.ring is None:
        return None
    try:
        from fluxline.server.rpc.door import ImageGen
        from fluxline.server.rpc.serve import GrpcServer
    except ImportError as exc:
        raise ConfigError("gRPC is not installed: pip install 'fluxline[grpc]'") from exc
    door = ImageGen(service, ground.pictures, ground.ring, is_exclusive=settings.grpc_exclusive)
    rpc = GrpcServer(door, f"{_shown(settings.host)}:{settings.grpc_port}")
    await rpc.start()
    return rpc


async def _tell_health(rpc: "GrpcServer | None", service: Service) -> None:
    """Keep gRPC's health as the service's."""
    while rpc:
        await rpc.tell(is_ready=service.status.state == "ready")
        await asyncio.sleep(HEALTH_S)


async def _wind_down(service: Service, signals: "asyncio.Queue[int]", drain_s: float) -> None:
    """Let what runs finish within the limit. A second signal ends the wait."""
    status = service.status
    active = status.waiting + status.running
    if active:
        noun = "request" if active == 1 else "requests"
        print(f"finishing {active} {noun}, at most {drain_s:g} s; again to stop now", flush=True)
    await _first(service.drain(drain_s), signals.get())


async def _tell_when_ready(replica: Pool) -> None:
    if await replica.settled() == "ready":
        info = replica.models[0]
        print(f"ready: {info.name} on {info.device}, {info.dtype}", flush=True)


async def _first(*waits: Awaitable[object]) -> None:
    """Wait until one of them is over; cancel the others."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


class _Server(uvicorn.Server):
    """uvicorn without its own signal handling, which would end us before the pictures are out."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield


def _config(app: object) -> uvicorn.Config:
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        http=Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=ANSWER_GRACE_S,
    )


@contextlib.contextmanager
def _signals() -> Iterator["asyncio.Queue[int]"]:
    """Collect INT and TERM in a queue instead of dying of them."""
    loop = asyncio.get_running_loop()
    received: asyncio.Queue[int] = asyncio.Queue()
    numbers = (signal.SIGINT, signal.SIGTERM)
    for number in numbers:
        loop.add_signal_handler(number, received.put_nowait, number)
    try:
        yield received
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def _ring(settings: Settings, database: Database) -> KeyRing | None:
    """The keys that are good; None if there are none, and none are needed. Raises ConfigError."""
    given = [key.strip() for key in settings.api_keys.split(",") if key.strip()]
    ring = KeyRing(database, given=given)
    if not ring.is_empty:
        return ring
    if not is_loopback(settings.host) and not settings.insecure:
        raise ConfigError(
            f"listening on {settings.host} lets others in, and there is no key: make one with "
            "`fluxline keys create NAME`, set API_KEYS, or say --insecure"
        )
    return None


def _announce(listener: socket.socket, settings: Settings, rpc: "GrpcServer | None") -> None:
    port = listener.getsockname()[1]
    where = f"http://{_shown(settings.host)}:{port}"
    if rpc:
        where += f" and for gRPC on port {rpc.port}"
    loads = f"listens on {where} and loads {settings.model}"
    print(f"Fluxline {version('fluxline')} {loads}", flush=True)
    if settings.insecure and not is_loopback(settings.host):
        _log.warning("listening on %s: whoever can reach it can draw, without a key", settings.host)


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
