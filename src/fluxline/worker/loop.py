"""The worker's conversation with its fleet: one reading loop, one writing thread.

Knows no engine by name: whoever calls `converse` says how to open one.
"""

import contextlib
import logging
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from fluxline import wire
from fluxline.ability import EngineStats, ModelInfo
from fluxline.errors import EngineError, FluxlineError, LoadError
from fluxline.request import (
    CancelledEvent,
    Event,
    Failed,
    GenerationRequest,
    ImageReady,
    Terminal,
)

EXIT_OK = 0
EXIT_BROKEN = 1  # the engine or the conversation broke
EXIT_CANNOT_LOAD = 2
EXIT_ORPHANED = 3
TELL_S = 1.0  # between two looks at what the engine has done
BEAT = 5  # looks after which it is told even if nothing was done: a worker that hangs says nothing

_log = logging.getLogger(__name__)


class Engine(Protocol):
    """What a worker asks of an engine, from any thread. `cancel` returns at once, and so does
    `start`, unless a request names LoRAs, which are read there or even fetched."""

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
    reception = Reception(engine, outbox)
    try:
        while (message := wire.receive_to_worker(sock)) is not None:
            match message:
                case wire.Submit(request):
                    reception.take(request)
                case wire.Cancel(request_id):
                    reception.cancel(request_id)
                case wire.Stop():
                    break
    except EngineError as exc:
        _log.error("cannot understand the fleet: %s", exc.message)
        return EXIT_BROKEN
    finally:
        engine.close()
    return EXIT_OK


@dataclass(slots=True, eq=False)
class _Submission:
    """One request that came. Its id may come again once it was given up, and waits for it then:
    the engine knows requests by their ids."""

    request: GenerationRequest
    before: "_Submission | None"
    is_given_up: bool = False  # nothing more of it shall be told
    over: threading.Event = field(default_factory=threading.Event)  # the engine has done with it


class Reception:
    """Takes requests to the engine, and tells what becomes of them.

    Those that name LoRAs go on threads of their own, so that what is fetched and read for them
    holds up nobody. `take` and `cancel` are for the reading loop.
    """

    def __init__(self, engine: Engine, outbox: "Outbox") -> None:
        self._engine, self._outbox = engine, outbox
        self._lock = threading.Lock()
        self._coming: dict[str, _Submission] = {}  # what the engine has not accepted yet
        self._given_up: dict[str, _Submission] = {}  # the last of an id, until it is over

    def take(self, request: GenerationRequest) -> None:
        """Have a request accepted, or tell why not."""
        with self._lock:
            one = _Submission(request, before=self._given_up.get(request.id))
            self._coming[request.id] = one
        if one.before or any(picture.params.loras for picture in request.pictures()):
            # a daemon: a download must not keep a process that is told to stop
            threading.Thread(target=self._start, args=(one,), name="accept", daemon=True).start()
        else:
            self._start(one)

    def cancel(self, request_id: str) -> None:
        """End a request; one that is still on its way to the engine ends here."""
        with self._lock:
            one = self._coming.pop(request_id, None)
            if one is not None:
                one.is_given_up = True
                self._given_up[request_id] = one
                self._outbox.put(wire.happened(CancelledEvent(request_id)))
        if one is None:
            self._engine.cancel(request_id)

    def _start(self, one: _Submission) -> None:
        if one.before is not None:
            one.before.over.wait()
        with self._lock:
            if one.is_given_up:  # while it waited: the engine has never heard of it
                self._end(one)
                return
        refusal = self._refusal(one)
        with self._lock:
            is_given_up = one.is_given_up
            if not is_given_up:
                del self._coming[one.request.id]
                if refusal is not None:
                    self._outbox.put(wire.refused(one.request.id, refusal))
            elif refusal is not None:
                self._end(one)
        if is_given_up and not one.over.is_set():
            self._engine.cancel(one.request.id)

    def _refusal(self, one: _Submission) -> FluxlineError | None:
        try:
            self._engine.start(one.request, partial(self._tell, one))
        except FluxlineError as exc:
            return exc
        except Exception:  # noqa: BLE001 - a door: one request must not end the process
            _log.exception("the engine broke on accepting request %s", one.request.id)
            return EngineError("the engine broke on this request")
        return None

    def _tell(self, one: _Submission, event: Event) -> None:
        event = _sendable(event, self._engine)
        with self._lock:
            if not one.is_given_up:
                self._outbox.put(wire.happened(event))
            elif isinstance(event, Terminal):
                self._end(one)

    def _end(self, one: _Submission) -> None:
        """Let the next one of a given-up id begin."""
        one.over.set()
        if self._given_up.get(one.request.id) is one:
            del self._given_up[one.request.id]


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
