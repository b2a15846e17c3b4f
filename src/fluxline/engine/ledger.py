"""Requests put together again from their pictures: every one ends exactly once.

The engine's thread and the finishing threads report here; each request's events come out in
order and stop at its end.
"""

import logging
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from fluxline.errors import FluxlineError, InvalidParams, NotReady
from fluxline.request import (
    CancelledEvent,
    Done,
    Event,
    Failed,
    GenerationRequest,
    ImageReady,
    ImageResult,
    Progress,
    Queued,
    Started,
    Terminal,
)

_log = logging.getLogger(__name__)

Publish = Callable[[Event], None]


@dataclass(slots=True)
class _Open:
    publish: Publish
    pictures_left: int
    started: bool = False
    told: dict[int, int] = field(default_factory=dict)  # picture -> the last evaluation told of


class Ledger:
    """Requests accepted and not ended. Thread: any; publishers are called under its lock."""

    def __init__(self) -> None:
        self._closed: str | None = None
        self._open: dict[str, _Open] = {}
        self._lock = threading.RLock()
        self._empty = threading.Event()
        self._empty.set()

    def open(self, request: GenerationRequest, publish: Publish) -> None:
        """Accept a request. Raises InvalidParams for an open id, NotReady once it is closed."""
        with self._lock:
            if self._closed is not None:
                raise NotReady(self._closed, retry_after_s=5.0)
            if request.id in self._open:
                raise InvalidParams(f"id {request.id!r} is already open", field="id")
            self._empty.clear()
            position = len(self._open)
            self._open[request.id] = _Open(publish, request.count)
            self._tell(publish, Queued(request.id, position))

    def close(self, reason: str) -> None:
        """Accept nothing more."""
        with self._lock:
            self._closed = reason

    def start(self, request_id: str) -> None:
        """The first of its pictures has begun."""
        with self._lock:
            if (entry := self._open.get(request_id)) and not entry.started:
                entry.started = True
                self._tell(entry.publish, Started(request_id))

    def progress(self, event: Progress) -> None:
        """Pass progress on, unless something later was told or the request has ended."""
        with self._lock:
            entry = self._open.get(event.request_id)
            if entry and entry.told.get(event.index, 0) < event.evaluation:
                entry.told[event.index] = event.evaluation
                self._tell(entry.publish, event)

    def deliver(self, request_id: str, image: ImageResult) -> None:
        """Pass a picture on; the last one ends the request."""
        with self._lock:
            if entry := self._open.get(request_id):
                entry.told[image.index] = sys.maxsize
                self._tell(entry.publish, ImageReady(request_id, image))
                entry.pictures_left -= 1
                if not entry.pictures_left:
                    self._end(request_id, Done(request_id))

    def fail(self, request_id: str, error: FluxlineError) -> None:
        """End a request for a reason."""
        self._end(request_id, Failed(request_id, error.code, error.message))

    def cancel(self, request_id: str) -> None:
        """End a request because its caller no longer wants it."""
        self._end(request_id, CancelledEvent(request_id))

    def open_ids(self) -> list[str]:
        """Requests that have not ended."""
        with self._lock:
            return list(self._open)

    def wait_empty(self, timeout_s: float) -> bool:
        """Wait until every request has ended. False: the time was not enough."""
        return self._empty.wait(timeout_s)

    def _end(self, request_id: str, event: Terminal) -> None:
        with self._lock:
            if entry := self._open.pop(request_id, None):
                self._tell(entry.publish, event)
            if not self._open:
                self._empty.set()

    @staticmethod
    def _tell(publish: Publish, event: Event) -> None:
        """Pass an event on. A reader that breaks is the reader's trouble, not the engine's."""
        try:
            publish(event)
        except Exception:  # noqa: BLE001 - somebody else's code, on the engine's thread
            _log.exception("a reader of %s raised", event.request_id)
