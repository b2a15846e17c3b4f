"""What front doors hold: a request comes in, its events come out, and nothing accepted is lost.

A job is written down before anybody is told that it was accepted. Knows no protocol and no
process. Lives on one event loop.
"""

import asyncio
import contextlib
from collections.abc import Coroutine, Mapping
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from fluxline.ability import EngineStats, ModelInfo, check, check_pictures, cost
from fluxline.errors import FluxlineError, NotReady
from fluxline.fleet.replica import ReplicaState
from fluxline.fleet.router import Router
from fluxline.jobs import JobRow, JobState, JobStore, Limits
from fluxline.loras import LoraFolder
from fluxline.profiles import PRESETS, Preset
from fluxline.request import (
    CancelledEvent,
    GenerationRequest,
    ImageReady,
    ImageResult,
    failure_of,
)
from fluxline.service import record
from fluxline.service.admission import Admission
from fluxline.service.clerk import Clerk
from fluxline.service.dispatcher import Dispatcher
from fluxline.service.elsewhere import Elsewhere
from fluxline.service.feed import Feed, Ticket
from fluxline.service.loras import Loras
from fluxline.service.meter import Meter
from fluxline.service.register import Register
from fluxline.service.roster import Roster
from fluxline.service.stranded import Stranded
from fluxline.service.sweeper import Sweeper
from fluxline.service.terms import Caller, Status, Terms
from fluxline.storage import Pictures
from fluxline.tracing import OFF, Tracing, open_span


class Finished(NamedTuple):
    """A finished request: its job, which an earlier call may have begun, and the pictures."""

    job_id: str
    images: tuple[ImageResult, ...]


class Service:
    """Admits requests up to a bound and follows each to its end.

    holder: this server's name in the job store, the same after a restart if it alone uses it.
    aliases, presets: names that requests use for profiles and for bundles of parameters.
    """

    def __init__(
        self,
        router: Router,
        store: JobStore,
        pictures: Pictures,
        *,
        queue_limit: int,
        queue_s: float = float("inf"),
        window: int = 16,
        keep_days: float | None = None,
        keep_bytes: int | None = None,
        holder: str = "local",
        aliases: Mapping[str, str] | None = None,
        loras: Loras | None = None,
        presets: Mapping[str, Preset] = PRESETS,
        tracing: Tracing = OFF,
    ) -> None:
        self._router, self._store = router, store
        self._holder = holder
        self.loras = loras or Loras(LoraFolder(None))
        self._clerk, self._register = Clerk(), Register(router)
        self._admission = Admission(self._register, queue_limit=queue_limit, queue_s=queue_s)
        self.roster = Roster(router, self._admission, aliases=aliases or {}, presets=presets)
        self._dispatcher = Dispatcher(
            store,
            self._clerk,
            router,
            pictures,
            holder=holder,
            window=window,
            feed_of=self._register.of,
            tracing=tracing,
        )
        self._sweeper = Sweeper(
            store, self._clerk, pictures, keep_days=keep_days, max_bytes=keep_bytes
        )
        self._elsewhere = Elsewhere(
            store, self._clerk, pictures, strays=self._strays, let_go=self._register.let_go
        )
        self._stranded = Stranded(
            router, store, self._clerk, strays=self._strays, why_not=lambda: self.status.reason
        )
        self._is_closing = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Take up what an earlier server left behind, and begin to work. Raises NotReady."""
        await self._clerk.do(self._store.end_leases_of, self._holder)
        await self._stranded.bequeath()
        for row in await self._clerk.do(self._store.recent, states=[JobState.QUEUED], limit=10_000):
            self._register.of(row)
        for one in self._router:
            one.on_change = self._dispatcher.wake
        self._dispatcher.start()
        self._dispatcher.wake()
        self._begin(self._sweeper.run())
        self._begin(self._elsewhere.run())
        self._begin(self._stranded.look_at_connections())
        self._begin(self._stranded.look_at_queue())

    # ---- what there is

    @property
    def models(self) -> tuple[ModelInfo, ...]:
        """What is served and was loaded since the start; the first is the default."""
        return self._router.models

    @property
    def status(self) -> Status:
        """How things stand."""
        router = self._router
        state: ReplicaState | Literal["cut_off"] = router.state
        reason = router.reason
        if self._is_closing:
            state, reason = "stopped", "the server is shutting down"
        elif state == "ready" and self._dispatcher.is_cut_off:
            state, reason = "cut_off", "the job database does not answer"
        return Status(
            state=state,
            reason=reason,
            models=tuple(model.name for model in router.models),
            waiting=self._register.waiting,
            running=self._register.running,
            restarts=router.restarts,
            engines=router.ready,
            profiles=self.roster.all,
        )

    @property
    def engines(self) -> tuple[EngineStats, ...]:
        """What the engines that are there have done since they were opened, one each."""
        return self._router.stats

    @property
    def queue_limit(self) -> int:
        """How many requests may wait."""
        return self._admission.queue_limit

    @property
    def meter(self) -> Meter:
        """What was measured."""
        return self._register.meter

    # ---- one request

    def vet(self, request: GenerationRequest) -> ModelInfo:
        """Refuse what would not be admitted now, before anything is spent on it.

        Raises NotReady, QueueFull, UnknownModel, InvalidParams.
        """
        try:
            info = self._admitted(request)
            self._admission.vet(cost(request, info))
        except FluxlineError as exc:
            self.meter.refuse(exc)
            raise
        return info

    async def submit(
        self, request: GenerationRequest, terms: Terms = Terms(), caller: Caller = Caller()
    ) -> Ticket:
        """Admit a request: it is on disk when this returns. The same request again, told by its
        Idempotency-Key or as a client's own retry, follows the job that is there already.

        Raises NotReady, QueueFull, DeadlineExceeded, UnknownModel, InvalidParams.
        """
        here = open_span()
        try:
            profile = self.roster.of(request)
            request = replace(request, profile=profile, traceparent=here.traceparent)
            with here.child("admit") as span:
                ticket = await self._submitted(request, terms, caller)
                span.note({"fluxline.job.id": ticket.job_id})
                return ticket
        except FluxlineError as exc:
            self.meter.refuse(exc)
            raise

    async def draw(
        self, request: GenerationRequest, terms: Terms = Terms(), caller: Caller = Caller()
    ) -> Finished:
        """Draw a request to its end; its pictures in order. Cancelling this leaves the request.

        Raises what `submit` and the engine refuse with, EngineError, WorkerDied, Cancelled.
        """
        images: dict[int, ImageResult] = {}
        async with await self.submit(request, terms, caller) as ticket:
            async for event in ticket:
                if isinstance(event, ImageReady):
                    images[event.image.index] = event.image
                elif (error := failure_of(event)) is not None:
                    raise error
        return Finished(ticket.job_id, tuple(images[index] for index in sorted(images)))

    # ---- jobs that are there already

    async def job(self, job_id: str, owner: str | None = None) -> JobRow | None:
        """A job as it is written down, if it is this owner's; owner None: anybody's."""
        return await self._clerk.do(self._store.get, job_id, owner=owner)

    async def jobs(
        self, *, owner: str | None, states: tuple[JobState, ...], before: float | None, limit: int
    ) -> list[JobRow]:
        """Jobs, the newest first."""
        return await self._clerk.do(
            self._store.recent, owner=owner, states=states, before=before, limit=limit
        )

    async def counts(self) -> Mapping[JobState, int]:
        """How many jobs are in each state."""
        return await self._clerk.do(self._store.counts)

    async def follow(self, row: JobRow, *, after: int = 0, with_files: bool = False) -> Ticket:
        """Follow a job from the event after that number, wherever it is and whether it is over.

        Pictures that are not at hand come without their files, unless these are wanted.
        """
        at_hand = self._register.get(row.id)
        feed = at_hand or await self._elsewhere.feed(row, with_files=with_files)
        return feed.follow(after=after)

    async def cancel(self, job_id: str, owner: str | None = None) -> JobRow | None:
        """Cancel a job that is not over, within one evaluation. None: no such job."""
        row = await self._clerk.do(self._store.cancel, job_id, owner=owner)
        if row is not None and not self._dispatcher.cancel(job_id):
            feed = self._register.get(job_id)
            if feed and row.state == JobState.CANCELLED:
                feed.publish(CancelledEvent(job_id))
        return row

    async def retry(self, job_id: str, caller: Caller = Caller()) -> JobRow | None:
        """Queue a job that failed or was cancelled again, from its seed. None: no such job.

        It is drawn whether anybody waits or not, and has no deadline. Raises QueueFull.
        """
        row = await self.job(job_id, owner=caller.scope)
        if row is None or row.state not in (JobState.FAILED, JobState.CANCELLED):
            return row
        most = self.roster.queue_limit(row.profile)
        with self._admission.granted(row.cost, caller, of_profile=most) as limits:
            retry = self._clerk.do(self._store.retry, job_id, limits, owner=caller.scope)
            row = await self._admission.paced(retry, row.cost)
        if row is not None and row.state == JobState.QUEUED:
            await self._stranded.bequeath()
            self._register.of(row)
            self._dispatcher.wake()
        return row

    # ---- the end

    async def drain(self, drain_s: float) -> None:
        """Admit and begin nothing more; wait for what is being drawn, at most drain_s seconds.

        Who waits on a connection for what was not begun is told; the rest stays in the queue.
        """
        self._is_closing = True
        self._dispatcher.stop_claiming()
        held = self._dispatcher.holds
        await self._stranded.turn_away(
            f for f in self._register if f.is_fleeting and not held(f.request.id)
        )
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(drain_s):
                await self._dispatcher.drained()

    async def close(self) -> None:
        """Stop, the replicas having been stopped before: what they held is in the queue again."""
        self._is_closing = True
        await self._dispatcher.close()
        await self._stranded.turn_away(f for f in self._register if f.is_fleeting)
        gone = NotReady("the server stops; the job goes on when it is back", retry_after_s=2.0)
        for feed in self._register:
            feed.break_off(gone)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._clerk.close()

    # ---- inside

    async def _submitted(self, request: GenerationRequest, terms: Terms, caller: Caller) -> Ticket:
        info = self._admitted(request)
        check_pictures(request, info)
        if known := await self._known(terms, caller):
            return self._followed(known, terms)
        usual = self.roster.loras(request.profile or "")
        request = await self.loras.filled(request, usual, info)
        work = cost(request, info)
        most = self.roster.queue_limit(request.profile or "")
        with self._admission.granted(work, caller, terms, of_profile=most) as limits:
            feed = self._feed_for(request, work, terms)
            try:
                row, is_new = await self._accepted(feed, terms, caller, limits)
            except BaseException as exc:
                self._register.forget(feed)
                if isinstance(exc, asyncio.CancelledError) and feed.is_fleeting:
                    self._begin(self._cancelled(feed))  # the row may be written all the same
                raise
        if not is_new:
            self._register.forget(feed)
            return self._followed(await self._feed_at_hand(row), terms)
        feed.request = record.without_pictures(feed.request)  # they are read again when it is drawn
        if terms.fingerprint:
            self._register.note(caller.owner, terms.fingerprint, feed)
        self._dispatcher.wake()
        return self._followed(feed, terms)

    async def _known(self, terms: Terms, caller: Caller) -> Feed | None:
        """The job that this very request began before. Raises InvalidParams."""
        if terms.idempotency_key is not None:
            row = await self._clerk.do(
                self._store.known, caller.owner, terms.idempotency_key, terms.fingerprint
            )
            return None if row is None else await self._feed_at_hand(row)
        return self._register.sent(caller.owner, terms.fingerprint) if terms.is_retry else None

    async def _feed_at_hand(self, row: JobRow) -> Feed:
        return self._register.get(row.id) or await self._elsewhere.feed(row, with_files=True)

    def _strays(self) -> list[Feed]:
        return [feed for feed in self._register if not self._dispatcher.holds(feed.request.id)]

    def _admitted(self, request: GenerationRequest) -> ModelInfo:
        if self._is_closing:
            raise NotReady(f"not ready: {self.status.reason}", retry_after_s=2.0)
        info = self.roster.info_for(replace(request, profile=self.roster.of(request)))
        for params in {picture.params for picture in request.pictures()}:
            check(params, info)
        return info

    async def _accepted(
        self, feed: Feed, terms: Terms, caller: Caller, limits: Limits
    ) -> tuple[JobRow, bool]:
        new = record.new_job(feed.request, terms, caller, cost=feed.cost, holder=self._holder)
        return await self._admission.paced(
            self._clerk.do(self._store.accept, new, limits), feed.cost
        )

    def _feed_for(self, request: GenerationRequest, work: float, terms: Terms) -> Feed:
        """The feed of a new job, which must be there before the job can be claimed."""
        is_fleeting = terms.is_fleeting
        keeps = terms.keeps or not is_fleeting
        if keeps and self._dispatcher.is_clogged:
            raise NotReady("the store of pictures does not answer", retry_after_s=10.0)
        feed = Feed(request, cost=work, keeps=keeps, is_fleeting=is_fleeting, door=terms.door)
        return self._register.enter(feed)

    def _followed(self, feed: Feed, terms: Terms) -> Ticket:
        """Follow a job. A fleeting one is not drawn any more when its last caller leaves."""

        def left(_: Ticket) -> None:
            asyncio.get_running_loop().call_later(terms.grace_s, self._abandon, feed)

        return feed.follow(left=left if feed.is_fleeting else None)

    def _abandon(self, feed: Feed) -> None:
        if not feed.is_over and not feed.followers:
            self._register.unnote(feed)  # who asks again gets a new one
            self._begin(self._cancelled(feed))

    async def _cancelled(self, feed: Feed) -> None:
        if not self._dispatcher.cancel(feed.request.id):
            await self.cancel(feed.request.id)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
