"""The life of a request: admitted, dispatched to the fleet, collected; cancelled when left alone.

Knows no protocol and no process. Front doors hold a `Service`; it holds a `Replica`.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from fluxline.errors import FluxlineError, NotReady, QueueFull, UnknownModel
from fluxline.fleet.replica import Replica, ReplicaState
from fluxline.request import (
    Event,
    GenerationRequest,
    ImageReady,
    ImageResult,
    ModelInfo,
    Queued,
    Terminal,
    failure_of,
)
from fluxline.settings import DEFAULT_MODEL

LONGEST_OPENING_S = 120.0  # for which a request waits while the model is loaded
LONGEST_RETRY_S = 120.0  # official clients give up on a longer one


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """How the server is, for people and probes."""

    state: ReplicaState
    reason: str  # why it is not ready; empty when it is
    models: tuple[str, ...]
    waiting: int
    running: int
    restarts: int


class Ticket:
    """One admitted request: an async iterator of its events, ending after the last.

    Use it as a context manager: leaving before the end cancels the request. Iterating raises
    the error of a request that the engine refused. Lives on one event loop.
    """

    def __init__(self, service: "Service", request: GenerationRequest) -> None:
        self.request = request
        self.is_waiting = True
        self._service = service
        self._news: asyncio.Queue[Event | FluxlineError] = asyncio.Queue()
        self._is_over = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.cancel()

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        if self._is_over and self._news.empty():
            raise StopAsyncIteration
        news = await self._news.get()
        if isinstance(news, FluxlineError):
            raise news
        return news

    def cancel(self) -> None:
        """Stop drawing. Does nothing once the request is over."""
        if not self._is_over:
            self._service.cancel(self.request.id)

    def publish(self, news: Event | FluxlineError) -> None:
        """Take the next event from the fleet."""
        self._is_over = isinstance(news, Terminal | FluxlineError)
        if not isinstance(news, Queued):
            self.is_waiting = False
        self._service.observe(self, news)
        self._news.put_nowait(news)


class Service:
    """Admits requests up to a bound and follows each to its end. Lives on one event loop."""

    def __init__(
        self, replica: Replica, *, queue_limit: int, aliases: Mapping[str, str] | None = None
    ) -> None:
        self._replica = replica
        self._queue_limit = queue_limit
        self._aliases = dict(aliases or {})
        self._tickets: dict[str, Ticket] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._is_closing = False
        self._at_the_door = 0  # requests that wait for the model
        self._pace = Pace()

    @property
    def models(self) -> tuple[ModelInfo, ...]:
        """What is served; the first is the default."""
        return self._replica.models

    @property
    def status(self) -> Status:
        """How things stand."""
        waiting = sum(ticket.is_waiting for ticket in self._tickets.values())
        replica = self._replica
        return Status(
            state="stopped" if self._is_closing else replica.state,
            reason="the server is shutting down" if self._is_closing else replica.reason,
            models=tuple(model.name for model in replica.models),
            waiting=waiting,
            running=len(self._tickets) - waiting,
            restarts=replica.restarts,
        )

    def model(self, name: str | None) -> ModelInfo:
        """Find a model by name, alias or None (the default). Raises UnknownModel, NotReady."""
        if not self.models:
            raise NotReady(f"not ready: {self.status.reason}", retry_after_s=2.0)
        wanted = self._aliases.get(name, name) if name else DEFAULT_MODEL
        if wanted == DEFAULT_MODEL:
            return self.models[0]
        for model in self.models:
            if model.name == wanted:
                return model
        served = ", ".join(model.name for model in self.models)
        raise UnknownModel(f"model {name!r} is not served here; served: {served}")

    async def opened(self) -> None:
        """Wait while the model is being loaded or the worker started again.

        Raises QueueFull when as many wait as may, NotReady when it takes too long.
        """
        if self._is_closing or self._replica.state not in ("starting", "restarting"):
            return
        self._refuse_beyond_limit(pictures=1)
        self._at_the_door += 1
        try:
            async with asyncio.timeout(LONGEST_OPENING_S):
                await self._replica.settled()
        except TimeoutError:
            raise NotReady(f"not ready: {self._replica.reason}", retry_after_s=10.0) from None
        finally:
            self._at_the_door -= 1

    def submit(self, request: GenerationRequest) -> Ticket:
        """Admit a request. Raises NotReady, QueueFull, UnknownModel."""
        status = self.status
        if status.state != "ready":
            raise NotReady(f"not ready: {status.reason}", retry_after_s=2.0)
        self.model(request.model)
        self._refuse_beyond_limit(pictures=request.count)
        ticket = Ticket(self, request)
        self._tickets[request.id] = ticket
        self._idle.clear()
        self._pace.begin(len(self._tickets))
        try:
            self._replica.submit(request, ticket.publish)
        except FluxlineError:
            self._forget(ticket)
            raise
        return ticket

    async def draw(self, request: GenerationRequest) -> tuple[ImageResult, ...]:
        """Draw a request to its end; its pictures in order. Cancelling this cancels the request.

        Raises what `submit` and the engine refuse with, EngineError, WorkerDied, Cancelled.
        """
        images: dict[int, ImageResult] = {}
        async with self.submit(request) as ticket:
            async for event in ticket:
                if isinstance(event, ImageReady):
                    images[event.image.index] = event.image
                elif (error := failure_of(event)) is not None:
                    raise error
        return tuple(images[index] for index in sorted(images))

    def cancel(self, request_id: str) -> None:
        """Stop drawing a request. An unknown id is ignored."""
        self._replica.cancel(request_id)

    def observe(self, ticket: Ticket, news: Event | FluxlineError) -> None:
        """Keep the books on what the fleet published for a ticket."""
        if isinstance(news, ImageReady):
            self._pace.picture()
        if isinstance(news, Terminal | FluxlineError):
            self._forget(ticket)

    async def drain(self, drain_s: float) -> None:
        """Admit nothing more; wait until what was admitted is over, at most drain_s seconds."""
        self._is_closing = True
        try:
            await asyncio.wait_for(self._idle.wait(), drain_s)
        except TimeoutError:
            return

    def _refuse_beyond_limit(self, *, pictures: int) -> None:
        waiting = self.status.waiting + self._at_the_door
        if waiting >= self._queue_limit:
            raise QueueFull(
                f"{waiting} requests are waiting; at most {self._queue_limit} may",
                retry_after_s=self._pace.guess_s(pictures),
            )

    def _forget(self, ticket: Ticket) -> None:
        self._tickets.pop(ticket.request.id, None)
        if not self._tickets:
            self._idle.set()


class Pace:
    """Recent seconds per picture while there was work, for guessing when a place gets free."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._picture_s = 0.0  # running mean; 0: none drawn yet
        self._last = 0.0

    def begin(self, active: int) -> None:
        """Take note of a new request, `active` counting it."""
        if active == 1:
            self._last = self._clock()

    def picture(self) -> None:
        """Take note of a finished picture."""
        now = self._clock()
        took_s, self._last = now - self._last, now
        self._picture_s = 0.7 * self._picture_s + 0.3 * took_s if self._picture_s else took_s

    def guess_s(self, pictures: int) -> float:
        """Guess the whole seconds until that many more pictures are drawn, from 1 to the limit."""
        return float(min(max(math.ceil(self._picture_s * pictures), 1), LONGEST_RETRY_S))
