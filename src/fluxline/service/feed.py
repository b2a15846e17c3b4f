"""What happens to one job, told to everybody who follows it, however late they come."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Self

from fluxline.errors import FluxlineError
from fluxline.request import Event, GenerationRequest, ImageReady, Progress, Started, Terminal

LONGEST_BACKLOG = 64  # events for one follower

News = Event | FluxlineError
"""An error stands for the end of a request that was refused."""


class Feed:
    """The events of one job, numbered from 1, kept for those who come later.

    Of each picture only the latest progress is kept, and it is ready once. Lives on one event loop.
    cost: predicted. keeps: somebody will come back for the pictures, so they are stored.
    is_fleeting: nobody can come back; without followers it need not be drawn.
    """

    def __init__(
        self,
        request: GenerationRequest,
        *,
        cost: float = 0.0,
        keeps: bool = True,
        is_fleeting: bool = False,
        door: str = "",
    ) -> None:
        self.request = request
        self.cost, self.keeps, self.is_fleeting = cost, keeps, is_fleeting
        self.door = door
        self.predicted_s = 0.0  # until it ends, when it was entered; 0: nobody can say yet
        self._entered = time.monotonic()
        self.observe: Callable[[Feed, News], None] = lambda feed, news: None
        self.has_started = False
        self.is_over = False
        self._count = 0
        self._log: dict[object, tuple[int, News]] = {}
        self._followers: set[Ticket] = set()

    @property
    def followers(self) -> int:
        """How many follow it now."""
        return len(self._followers)

    @property
    def age_s(self) -> float:
        """Since it was accepted."""
        return time.monotonic() - self._entered

    def publish(self, news: News) -> None:
        """Tell everybody. Nothing is told after the end."""
        if self.is_over:
            return
        key = _key(news)
        if isinstance(news, ImageReady) and key in self._log:
            return  # drawn again after it was put back
        self._count += 1
        self.has_started = self.has_started or isinstance(news, Started)
        self.is_over = isinstance(news, Terminal | FluxlineError)
        self._log.pop(key, None)
        self._log[key] = (self._count, news)
        for ticket in self._followers:
            ticket.put(self._count, news)
        self.observe(self, news)

    def follow(self, *, after: int = 0, left: "Callable[[Ticket], None] | None" = None) -> "Ticket":
        """Follow from the event after that number. `left` is called when the follower leaves.

        A number that was not reached yet is of an earlier server: the follower hears all.
        """
        after = after if after <= self._count else 0
        ticket = Ticket(self, left)
        self._followers.add(ticket)
        for number, news in self._log.values():
            if number > after:
                ticket.put(number, news)
        if self.is_over and after == self._count:
            ticket.end()  # they have heard it all
        return ticket

    def break_off(self, reason: FluxlineError) -> None:
        """Tell those who follow it now nothing more, though it is not over."""
        for ticket in self._followers:
            ticket.put(self._count, reason)

    def unfollow(self, ticket: "Ticket") -> None:
        """Tell a follower nothing more."""
        self._followers.discard(ticket)


def _key(news: News) -> object:
    match news:
        case Progress(index=index):
            return Progress, index
        case ImageReady(image=image):
            return ImageReady, image.index
    return type(news)


class Ticket:
    """One caller's view of a job: an async iterator of its events, ending after the last.

    Use it as a context manager: it tells the service when this caller leaves. Iterating raises
    the error of a request that was refused. Lives on one event loop.
    """

    def __init__(self, feed: Feed, left: "Callable[[Ticket], None] | None") -> None:
        self.job_id = feed.request.id
        self.last_number = 0  # of the event that was yielded last
        self._feed, self._left = feed, left
        self._news: deque[tuple[int, News]] = deque()
        self._changed = asyncio.Event()
        self._is_over = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._feed.unfollow(self)
        if self._left:
            self._left(self)

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        while not self._news:
            if self._is_over:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        self.last_number, news = self._news.popleft()
        self._is_over = isinstance(news, Terminal | FluxlineError)
        if isinstance(news, FluxlineError):
            raise news
        return news

    def put(self, number: int, news: News) -> None:
        """Take the next event from the feed. Who is slow to read misses some progress."""
        if len(self._news) >= LONGEST_BACKLOG:
            stale = (k for k, (_, old) in enumerate(self._news) if isinstance(old, Progress))
            if (k := next(stale, None)) is not None:
                del self._news[k]
        self._news.append((number, news))
        self._changed.set()

    def end(self) -> None:
        """Expect nothing more."""
        self._is_over = True
        self._changed.set()
