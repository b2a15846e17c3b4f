"""The worker's conversation with its fleet: one reading loop, one writing thread.

Knows no engine by name: whoever calls `converse` says how to open one.
"""

import contextlib
import logging
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Protocol

from fluxline import wire
from fluxline.errors import EngineError, FluxlineError, LoadError
from fluxline.request import EngineStats, Event, Failed, GenerationRequest, ImageReady, ModelInfo

EXIT_OK = 0
EXIT_BROKEN = 1  # the engine or the conversation broke
EXIT_CANNOT_LOAD = 2
TELL_S = 1.0  # between two looks at what the engine has done
BEAT = 5  # looks after which it is told even if nothing was done: a worker that hangs says nothing

_log = logging.getLogger(__name__)


class Engine(Protocol):
    """What a worker asks of an engine. `start` and `cancel` return at once, from any thread."""

    @property
    def models(self) -> tuple[ModelInfo, ...]:
        """What it serves."""

    @property
    def stats(self) -> EngineStats:
        """What it has done."""

    def start(self, request: GenerationRequest, publish: Callable[[Event], None]) -> None:
        """Accept a request, or raise. Its events then arrive on the engine's own threads."""

    def cancel(self, request_id: str) -> None:
        """Stop drawing a request. An unknown id is ignored."""

    def close(self) -> None:
        """End all requests. Blocks."""


def converse(sock: socket.socket, open_engine: Callable[[], Engine]) -> int:
    """Open the engine and serve it over the socket until told to stop; return an exit code.

    A socket that closes means that the parent is gone: running requests end at once.
    """
    outbox = Outbox(sock)
    try:
        engine = _opened(open_engine, outbox)
        if isinstance(engine, int):
            return engine
        outbox.put(wire.Ready(tuple(engine.models)))
        with _telling(engine, outbox):
            return _obey(sock, engine, outbox)
    finally:
        outbox.close()


def _opened(open_engine: Callable[[], Engine], outbox: "Outbox") -> Engine | int:
    try:
        return open_engine()
    except LoadError as exc:
        _log.error("the engine cannot be opened: %s", exc.message)
        _log.debug("because", exc_info=exc.__cause__)
        outbox.put(wire.Fatal(exc.message))
        return EXIT_CANNOT_LOAD
    except Exception:  # noqa: BLE001 - a door: the fleet may try again
        _log.exception("opening the engine failed")
        return EXIT_BROKEN


@contextlib.contextmanager
def _telling(engine: Engine, outbox: "Outbox") -> Iterator[None]:
    """Tell the fleet what the engine has done, whenever that has changed and now and then."""
    is_over = threading.Event()

    def tell() -> None:
        told, looks = None, 0
        while not is_over.wait(TELL_S):
            looks += 1
            if (stats := engine.stats) != told or looks == BEAT:
                told, looks = stats, 0
                outbox.put(wire.Told(stats))

    thread = threading.Thread(target=tell, name="stats", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def _obey(sock: socket.socket, engine: Engine, outbox: "Outbox") -> int:
    try:
        while (message := wire.receive_to_worker(sock)) is not None:
            match message:
                case wire.Submit(request):
                    _start(engine, request, outbox)
                case wire.Cancel(request_id):
                    engine.cancel(request_id)
                case wire.Stop():
                    break
    except EngineError as exc:
        _log.error("cannot understand the fleet: %s", exc.message)
        return EXIT_BROKEN
    finally:
        engine.close()
    return EXIT_OK


def _start(engine: Engine, request: GenerationRequest, outbox: "Outbox") -> None:
    try:
        engine.start(request, lambda event: outbox.put(wire.happened(_sendable(event, engine))))
    except FluxlineError as exc:
        outbox.put(wire.refused(request.id, exc))
    except Exception:  # noqa: BLE001 - a door: one request must not end the process
        _log.exception("the engine broke on accepting request %s", request.id)
        outbox.put(wire.refused(request.id, EngineError("the engine broke on this request")))


def _sendable(event: Event, engine: Engine) -> Event:
    """Turn a picture that no frame can carry into a failure of its request."""
    if not isinstance(event, ImageReady) or len(event.image.data) < wire.FRAME_LIMIT - 2**16:
        return event
    engine.cancel(event.request_id)
    size = len(event.image.data)
    return Failed(event.request_id, EngineError.code, f"the picture is too large: {size} bytes")


class Outbox:
    """Sends messages in the order they were put, on a thread of its own.

    `put` is for any thread and never waits for the socket. Once the other end is gone, what is
    put is dropped: nobody is there to read it.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._waiting: queue.SimpleQueue[wire.FromWorker | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._send_all, name="outbox", daemon=True)
        self._thread.start()

    def put(self, message: wire.FromWorker) -> None:
        """Send a message, soon."""
        self._waiting.put(message)

    def close(self) -> None:
        """Send what is waiting, then end the thread."""
        self._waiting.put(None)
        self._thread.join()

    def _send_all(self) -> None:
        while (message := self._waiting.get()) is not None:
            try:
                self._sock.sendall(wire.frame(message))
            except OSError:
                _log.info("the fleet is gone")
                return
            except Exception:  # noqa: BLE001 - without an outbox the worker is mute: end it
                _log.exception("a message cannot be sent")
                self._sock.shutdown(socket.SHUT_RDWR)
                return
