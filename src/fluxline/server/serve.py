"""`fluxline serve`: the API process from its start to its last answer, signals included."""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
from collections.abc import AsyncGenerator, Awaitable, Coroutine, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NoReturn

import uvicorn
from fastapi import FastAPI

from fluxline.errors import ConfigError, NotReady, StorageError
from fluxline.fleet.on_demand import OnDemand
from fluxline.fleet.process import ENGINE
from fluxline.fleet.router import Router
from fluxline.server.connection import Connection, allow_many_connections
from fluxline.server.house import Ground, House, build, prepare
from fluxline.server.origin import is_loopback
from fluxline.service import Service
from fluxline.settings import Settings
from fluxline.storage import Pictures
from fluxline.telemetry import configure_logging

if TYPE_CHECKING:
    from fluxline.server.rpc.serve import GrpcServer

EXIT_OK = 0
EXIT_CANNOT_START = 2
HEALTH_S = 1.0  # between two looks that gRPC's health watchers hear of
IDLE_S = 75  # for which a line is kept open: longer than proxies keep theirs
ANSWER_GRACE_S = 5  # for the last answers to leave, once nothing is drawn any more

_log = logging.getLogger(__name__)


def run(settings: Settings, *, engine: str = ENGINE) -> NoReturn:
    """Serve until told to stop; then end the process (exit code 2: it could not start, or go on).

    `engine` is the module:factory that the worker opens in place of Fluxline's own.

    The interpreter is not torn down: threads of the picture store's Rust code, which nobody can
    join, would now and then meet its end in the midst of a result and abort the process.
    """
    configure_logging(settings.log_level, settings.log_format)
    allow_many_connections()
    with contextlib.ExitStack() as stack:
        exit_code = _run(settings, stack, engine)
    logging.shutdown()
    os._exit(exit_code)


def _run(settings: Settings, stack: contextlib.ExitStack, engine: str) -> int:
    try:
        ground = prepare(settings, stack)
    except (ConfigError, NotReady) as exc:
        _log.error("%s", exc.message)
        return EXIT_CANNOT_START
    return asyncio.run(_serve(settings, ground, engine))


async def _serve(settings: Settings, ground: Ground, engine: str) -> int:
    house = build(settings, ground, engine)
    gc.freeze()  # what is there now stays: no later look needs to go through it
    gc.enable()
    service, router = house.service, house.router
    try:
        await _try_out(ground.pictures)
        rpc = await _open_rpc(settings, house, ground)
        await service.start()
    except (ConfigError, NotReady) as exc:
        _log.error("%s", exc.message)
        return EXIT_CANNOT_START
    with _signals() as signals:
        async with _opened(house, [*ground.listeners], rpc) as serving:
            _announce(ground.listeners, settings, rpc)
            health = _tell_health(rpc, service)
            with _meanwhile(_tell_when_ready(router), health, house.webhooks.run()):
                await _first(signals.get(), router.ended(), asyncio.shield(serving))
                is_broken = router.state == "failed"
                if not is_broken:
                    await _wind_down(service, signals, settings.drain_s)
    if is_broken:
        _log.error("cannot go on: %s", router.reason)
        return EXIT_CANNOT_START
    return EXIT_OK


@contextlib.asynccontextmanager
async def _opened(
    house: House, listeners: Sequence[socket.socket], rpc: "GrpcServer | None"
) -> AsyncGenerator[asyncio.Task[None]]:
    """Load the model and let callers in; yield what serves them. At the end see them out."""
    server = _Server(_config(house.app))
    open_lines = contextlib.AsyncExitStack()
    await open_lines.enter_async_context(house.app.router.lifespan_context(house.app))
    house.router.start()
    serving = asyncio.create_task(server.serve(sockets=[*listeners]))
    try:
        yield serving
    finally:
        await house.router.stop()
        await house.service.close()
        await open_lines.aclose()  # uvicorn would wait for them first
        server.should_exit = True
        if rpc:
            await rpc.stop(ANSWER_GRACE_S)
        await serving


@contextlib.contextmanager
def _meanwhile(*works: Coroutine[Any, Any, None]) -> Iterator[None]:
    """Do this beside what is done inside, and no longer."""
    tasks = [asyncio.create_task(work) for work in works]
    for task in tasks:
        task.add_done_callback(_complain)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()


def _complain(task: asyncio.Task[None]) -> None:
    """Log what ended a task: nobody waits for it."""
    if not task.cancelled() and (fault := task.exception()):
        _log.error("unexpected failure", exc_info=fault)


async def _try_out(pictures: Pictures) -> None:
    """See that pictures can be stored; a store that is away is waited for. Raises ConfigError."""
    try:
        await pictures.try_out()
    except StorageError as exc:
        _log.warning("%s; pictures wait for it", exc.message)


async def _open_rpc(settings: Settings, house: House, ground: Ground) -> "GrpcServer | None":
    """Open the gRPC door, if it is wanted. Raises ConfigError."""
    if settings.grpc_port is None or ground.ring is None:
        return None
    try:
        from fluxline.server.rpc.door import ImageGen
        from fluxline.server.rpc.serve import GrpcServer
    except ImportError as exc:
        raise ConfigError("gRPC is not installed: pip install 'fluxline[grpc]'") from exc
    door = ImageGen(
        house.service,
        ground.pictures,
        ground.ring,
        house.uploads,
        is_exclusive=settings.grpc_exclusive,
        profile=settings.grpc_profile,
    )
    rpc = GrpcServer(
        door,
        f"{_shown(settings.host)}:{settings.grpc_port}",
        ground.tracing,
        most_bytes=settings.upload_limit_bytes,
    )
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


async def _tell_when_ready(router: Router) -> None:
    """Say of each profile when it can draw; of a lazy one that it will."""
    await asyncio.gather(*map(_tell_when_there, router))


async def _tell_when_there(one: OnDemand) -> None:
    if one.profile.is_lazy:
        print(f"ready: {one.name} is loaded when it is asked for", flush=True)
    elif await one.settled() == "ready":
        info = one.models[0]
        words = f"{info.name} on {info.device}, {info.precision}"
        whose = "" if one.name == info.name else f"{one.name}, "
        print(f"ready: {whose}{words}", flush=True)
        for note in info.notes:
            print(f"note: {note}", flush=True)


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


def _config(app: FastAPI) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=IDLE_S,
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


def _announce(
    listeners: Mapping[socket.socket, str], settings: Settings, rpc: "GrpcServer | None"
) -> None:
    (main, _), *others = listeners.items()
    where = f"http://{_shown(settings.host)}:{_port(main)}"
    if rpc:
        where += f" and for gRPC on port {rpc.port}"
    for listener, profile in others:
        where += f" and for {profile} on port {_port(listener)}"
    eager = [one.model for one in settings.served() if not one.is_lazy]
    loads = f"listens on {where}" + (f" and loads {', '.join(eager)}" if eager else "")
    print(f"Fluxline {version('fluxline')} {loads}", flush=True)
    if settings.insecure and not is_loopback(settings.host):
        _log.warning("listening on %s: whoever can reach it can draw, without a key", settings.host)


def _port(listener: socket.socket) -> int:
    port: int = listener.getsockname()[1]
    return port


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
