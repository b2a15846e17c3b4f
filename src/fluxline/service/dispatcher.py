"""Carries jobs from the queue to the replicas and their pictures to where they shall lie.

Claims as much as the replicas have room for, renews the leases of what it holds, and writes every
end down before anybody hears of it. A job that could not be finished here goes back to the queue.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial

from fluxline.errors import (
    Cancelled,
    CapacityError,
    DatabaseDown,
    DeadlineExceeded,
    EngineError,
    FluxlineError,
    NotReady,
    StorageError,
)
from fluxline.fleet.on_demand import OnDemand
from fluxline.fleet.router import Router
from fluxline.jobs import JobRow, JobStore
from fluxline.request import (
    CancelledEvent,
    Done,
    Failed,
    GenerationRequest,
    ImageReady,
    ImageResult,
    Queued,
    Terminal,
)
from fluxline.service import record
from fluxline.service.clerk import Clerk, endured
from fluxline.service.feed import Feed, News
from fluxline.service.trace import JobTrace
from fluxline.storage import Pictures
from fluxline.tracing import Tracing

LEASE_S = 15.0
RENEWALS = 3  # of a lease, in its time
CLOSE_S = 5.0  # for the last words to be written
LOOKED_AT = 500
"""Of what waits for a profile that is down, so many, the first in turn, are held against what its
stand-ins can draw."""
RETRY_S = (0.2, 0.5, 1.0, 2.0, 5.0)
"""Between tries to reach a store that does not answer; the last again and again."""
SPOOL_BYTES = 256 * 2**20
"""Of pictures that wait for their store, before work is refused."""

_log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Held:
    """A job that was claimed here and is not over."""

    row: JobRow
    feed: Feed
    trace: JobTrace
    drawn_by: OnDemand
    is_cancelled: bool = False
    is_drawn: bool = False  # only its pictures' store is waited for


class Dispatcher:
    """Moves jobs while it runs. Lives on one event loop.

    holder: this server's name in the leases. window: jobs given to one replica at a time, so
    many that it can fill its batches and so few that those who wait are still served in turn.
    """

    def __init__(
        self,
        store: JobStore,
        clerk: Clerk,
        router: Router,
        pictures: Pictures,
        *,
        holder: str,
        window: int,
        feed_of: Callable[[JobRow], Feed],
        tracing: Tracing,
    ) -> None:
        self._store, self._clerk = store, clerk
        self._router, self._pictures = router, pictures
        self._holder, self._window = holder, window
        self._feed_of, self._tracing = feed_of, tracing
        self._held: dict[str, Held] = {}
        self._carrying: set[asyncio.Task[None]] = set()
        self._woken = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._is_claiming = True
        self._answers = 0  # of the job store to renewals, in a row
        self.is_cut_off = False  # whether the job store did not answer when it was asked last
        self._spooled = 0
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def is_clogged(self) -> bool:
        """Whether so many pictures wait for the store that no more may be drawn for it."""
        return self._spooled >= SPOOL_BYTES

    def start(self) -> None:
        """Begin to move jobs."""
        self._tasks = [
            asyncio.create_task(self._claim_for_ever(), name="service.claim"),
            asyncio.create_task(self._renew_for_ever(), name="service.renew"),
        ]

    def wake(self) -> None:
        """Look for work now."""
        self._woken.set()

    def cancel(self, job_id: str) -> bool:
        """Stop drawing a job. False: it is not held here."""
        held = self._held.get(job_id)
        if held is None:
            return False
        held.is_cancelled = True
        self._router.cancel(job_id)
        return True

    def holds(self, job_id: str) -> bool:
        """Whether a job was claimed here and is not over."""
        return job_id in self._held

    def stop_claiming(self) -> None:
        """Begin nothing more."""
        self._is_claiming = False

    async def drained(self) -> None:
        """Wait until nothing is held."""
        await self._idle.wait()

    async def close(self) -> None:
        """Stop. The replicas have been stopped before: what they held goes back to the queue."""
        self.stop_claiming()
        for task in self._tasks:
            task.cancel()
        if tasks := [*self._tasks, *self._carrying]:
            _, late = await asyncio.wait(tasks, timeout=CLOSE_S)
            for task in late:  # the next start takes up what they held
                task.cancel()

    # ---- claiming and holding

    async def _claim_for_ever(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):  # others may have queued some
                    await self._woken.wait()
            self._woken.clear()
            await endured(self._noticed(self._claim()))

    async def _claim(self) -> None:
        takers, down = self._router.takers(), self._router.down
        drawn_by = await self._stood_in_for(down)
        for one, profiles in takers:
            own = [name for name in profiles if name not in down]
            besides = [job_id for job_id, who in drawn_by.items() if who is one]
            await self._claim_for(one, own, besides=besides)

    async def _stood_in_for(self, down: list[str]) -> dict[str, OnDemand]:
        """Who would draw the first jobs that wait for each profile that is down.

        They are read only where somebody could take one, or could be loaded for one.
        """
        drawn_by = {}
        for profile in down:
            line = self._router.line_of(profile)
            if all(one.state == "ready" and self._room(one) <= 0 for one in line):
                continue
            for row in await self._clerk.do(
                self._store.waiting, self._holder, profile, limit=LOOKED_AT
            ):
                request = record.told_of(row)
                self._router.call_in(request)
                drawn_by[row.id], _ = self._router.standing(request)
        return drawn_by

    async def _claim_for(self, one: OnDemand, profiles: list[str], *, besides: list[str]) -> None:
        """Claim what is there for these profiles and besides, as far as who draws it has room."""
        while (room := self._room(one)) > 0:
            rows = await self._clerk.do(
                self._store.claim,
                self._holder,
                profiles=profiles,
                besides=besides,
                lease_s=LEASE_S,
                limit=room,
            )
            self.is_cut_off = False
            for row in rows:
                await self._take(row, one)
            if len(rows) < room:
                return

    def _room(self, one: OnDemand) -> int:
        if not self._is_claiming or one.state not in ("ready", "unloaded"):
            return 0
        drawing = sum(h.drawn_by is one and not h.is_drawn for h in self._held.values())
        return self._window * one.ready - drawing

    async def _take(self, row: JobRow, one: OnDemand) -> None:
        if mine := self._held.get(row.id):  # the lease was lost, and nobody else claimed it
            if mine.is_cancelled:
                await self._written(partial(self._store.put_back, row.token))
            else:
                mine.row = row
            return
        feed = self._feed_of(row)
        trace = JobTrace(self._tracing, row, feed.request)
        held = self._held[row.id] = Held(row=row, feed=feed, trace=trace, drawn_by=one)
        self._idle.clear()
        task = asyncio.create_task(self._carry(held), name=f"service.carry {row.id}")
        self._carrying.add(task)
        task.add_done_callback(self._carrying.discard)

    async def _renew_for_ever(self) -> None:
        while True:
            await asyncio.sleep(LEASE_S / RENEWALS)
            await endured(self._noticed(self._renew()))

    async def _noticed(self, work: Awaitable[None]) -> None:
        """Take note when the job store does not answer."""
        try:
            await work
        except DatabaseDown:
            self._answers, self.is_cut_off = 0, True
            raise

    async def _renew(self) -> None:
        tokens = [held.row.token for held in self._held.values()]
        answers = await self._clerk.do(self._store.renew, self._holder, tokens, lease_s=LEASE_S)
        for job_id, _ in tokens:
            if answers.get(job_id, True):  # lost, or its caller wants it no more
                self.cancel(job_id)
        self._answers, self.is_cut_off = self._answers + 1, False
        if self._answers >= RENEWALS:  # else other servers had no time to renew theirs
            await self._clerk.do(self._store.end_expired_leases)

    # ---- one job from its claim to its end

    async def _carry(self, held: Held) -> None:
        with held.trace:
            try:
                await self._draw(held)
            except Exception:  # noqa: BLE001 - a fault of ours: nobody may wait for ever
                _log.exception("unexpected failure of job %s", held.row.id)
                await self._end(held, EngineError("internal error"), [])
            finally:
                if self._held.get(held.row.id) is held:
                    del self._held[held.row.id]
                if not self._held:
                    self._idle.set()
                self.wake()

    async def _draw(self, held: Held) -> None:
        """Have a job drawn; store its pictures as they come; write its end down, then tell it."""
        row, news = held.row, asyncio.Queue[News]()
        if held.is_cancelled:
            return await self._end(held, CancelledEvent(row.id), [])
        if row.deadline is not None and row.deadline < time.time():
            late = DeadlineExceeded("the job waited beyond its deadline", retry_after_s=1.0)
            return await self._end(held, late, [])
        try:
            request = replace(record.request_of(row), priority=row.priority, owner=row.owner)
            if record.needs_pictures(request):
                request = await self._with_pictures(request)
            self._router.submit(request, held.trace.hearing(news.put_nowait))
        except NotReady as exc:
            return await self._end(held, Failed(row.id, CapacityError.code, exc.message), [])
        except FluxlineError as exc:
            return await self._end(held, exc, [])
        images: list[ImageResult] = []
        while True:
            match await news.get():
                case Queued():
                    pass  # it was told of its place when it was accepted
                case ImageReady(image=image):
                    try:
                        with held.trace.picture(image, is_stored=held.feed.keeps):
                            kept = await self._kept(held, image)
                    except (Cancelled, StorageError) as exc:
                        self._router.cancel(row.id)
                        is_wanted = isinstance(exc, StorageError)
                        news_of_end = exc if is_wanted else CancelledEvent(row.id)
                        return await self._end(held, news_of_end, images)
                    images.append(kept)
                    held.feed.publish(ImageReady(row.id, kept))
                case FluxlineError() as error:
                    return await self._end(held, error, images)
                case event if isinstance(event, Terminal):
                    return await self._end(held, event, images)
                case event:
                    held.feed.publish(event)

    async def _with_pictures(self, request: GenerationRequest) -> GenerationRequest:
        """The request, with the pictures that it is drawn from. Raises EngineError, NotReady."""
        data = await self._clerk.do(self._store.source, request.id)
        if data is None:
            raise EngineError("the pictures that the job is drawn from are not kept any more")
        return record.with_pictures(request, data)

    async def _kept(self, held: Held, image: ImageResult) -> ImageResult:
        """Store a picture that somebody will come back for, however long the store is away.

        Who waits on a connection is told at once: raises StorageError. Raises Cancelled.
        """
        if not held.feed.keeps:
            return image
        self._spooled += len(image.data)
        try:
            tries = 0
            while not held.is_cancelled:
                try:
                    put = await self._pictures.put(image.data, image.format)
                    return replace(image, stored=put.key)
                except StorageError:
                    if held.row.is_fleeting:
                        raise
                    wait_s = RETRY_S[min(tries, len(RETRY_S) - 1)]
                    _log.warning("job %s: the picture waits for its store", held.row.id)
                    tries += 1
                    held.is_drawn = True  # as far as the replicas' room goes
                    self.wake()
                    await asyncio.sleep(wait_s)
            raise Cancelled("the job was cancelled")
        finally:
            held.is_drawn = False
            self._spooled -= len(image.data)

    async def _end(self, held: Held, news: News, images: list[ImageResult]) -> None:
        """Write an end down, then tell it. What is not the job's fault puts it back."""
        token, store = held.row.token, self._store
        held.trace.conclude(news)
        match news:
            case Done():
                in_order = sorted(images, key=lambda image: image.index)
                text = await asyncio.to_thread(record.result_text, in_order)  # it hashes
                write = partial(store.finish, token, text)
            case CancelledEvent():
                write = partial(store.drop, token)
            case Failed(code=CapacityError.code):  # its replica is gone for good
                write = partial(store.put_back, token)
            case Failed(code=code, message=message) | FluxlineError(code=code, message=message):
                write = partial(store.fail, token, code, message)
            case _:
                raise TypeError(f"{news} is no end")
        is_written = await self._written(write)
        if write.func == store.put_back:
            held.feed.has_started = False
        elif is_written:
            held.feed.publish(news)
        else:
            _log.warning("job %s: the lease was lost; another server goes on", token[0])
            text = "the job went to another server: ask for it there"
            held.feed.publish(Failed(token[0], CapacityError.code, text))

    async def _written(self, write: Callable[[], bool]) -> bool:
        """Write to the job store, however long it is away."""
        tries = 0
        while True:
            try:
                return await self._clerk.do(write)
            except NotReady as exc:
                _log.warning("%s", exc.message)
                await asyncio.sleep(RETRY_S[min(tries, len(RETRY_S) - 1)])
                tries += 1
