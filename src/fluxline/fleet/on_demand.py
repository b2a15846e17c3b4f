"""One profile's replicas, which are there while they are wanted.

An eager profile is loaded when the server starts, and stays. A lazy one is loaded by the first who
asks, whom all others join, and ends its processes when it has been idle for long or when another
needs its memory.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace

from fluxline.ability import EngineStats, ModelInfo
from fluxline.errors import CapacityError, FluxlineError, NotReady
from fluxline.fleet.budget import Budget
from fluxline.fleet.replica import Publish, Replica, ReplicaState
from fluxline.profiles import Profile
from fluxline.request import CancelledEvent, Event, Failed, GenerationRequest, ImageReady, Terminal

_log = logging.getLogger(__name__)


class OnDemand:
    """A `Replica` that can be loaded and unloaded. Lives on one event loop.

    make: makes the replicas, which have not begun to load. What is asked of a lazy one that is not
    loaded waits here until it is.
    """

    def __init__(
        self, profile: Profile, make: Callable[[], Replica], *, budget: Budget | None = None
    ) -> None:
        self.profile = profile
        self._make, self._budget = make, budget or Budget()
        self._inner = None if profile.is_lazy else make()
        self._known: tuple[ModelInfo, ...] = ()
        self._restarts = 0  # of those that were unloaded since
        self._measured_bytes = 0
        self._waiting: dict[str, tuple[GenerationRequest, Publish]] = {}
        self._open: set[str] = set()
        self._holds_memory = False
        self._is_stopped = False
        self._is_called = False  # by `load`: it is loaded even when nobody waits for it any more
        self._loading: asyncio.Task[None] | None = None
        self._unloading: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._leaving: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._idle_since = time.monotonic()
        self._ended = asyncio.Event()
        self.on_change: Callable[[], None] = lambda: None

    @property
    def name(self) -> str:
        """The profile's."""
        return self.profile.name

    @property
    def state(self) -> ReplicaState:
        """Whether requests can be submitted now, or would have it loaded."""
        if self._inner is not None:
            return self._inner.state
        if self._is_stopped:
            return "stopped"
        if self._loading:
            return "starting"
        return "failed" if self._budget.why_never(self) else "unloaded"

    @property
    def reason(self) -> str:
        """Why it is not ready; empty when it is."""
        if self._inner is not None:
            return self._inner.reason
        if self._is_stopped:
            return "the server is shutting down"
        if self._loading:
            return "the model waits for memory"
        return self._budget.why_never(self) or "the model is not loaded"

    @property
    def is_down(self) -> bool:
        """Whether it cannot draw, though it was to."""
        return self.state in ("failed", "restarting")

    @property
    def models(self) -> tuple[ModelInfo, ...]:
        """What it serves, known from its first loading on."""
        return self._inner.models if self._inner and self._inner.models else self._known

    @property
    def ready(self) -> int:
        """How many engines can be given work now, or will be there for it."""
        if self._budget.must_leave(self):
            return 0
        if self._inner is not None:
            return self._inner.ready
        return self.profile.members if self.state == "unloaded" else 0

    @property
    def loaded(self) -> int:
        """How many engines are there."""
        return 0 if self._inner is None else self._inner.ready

    @property
    def restarts(self) -> int:
        """How often workers had to be started again."""
        return self._restarts + (0 if self._inner is None else self._inner.restarts)

    @property
    def stats(self) -> tuple[EngineStats, ...]:
        """What the engines have done that are there."""
        return () if self._inner is None else self._inner.stats

    @property
    def stays(self) -> bool:
        """Whether it is never unloaded."""
        return not self.profile.is_lazy

    @property
    def held_bytes(self) -> int:
        """Memory that it takes now, as was said or measured, whichever is more."""
        is_there = self._holds_memory and self.state != "failed"
        return self.needed_bytes if is_there else 0

    @property
    def needed_bytes(self) -> int:
        """Memory that it takes when it is loaded."""
        return max(self._measured(), self.profile.needs_bytes)

    @property
    def idle_since(self) -> float | None:
        """Since when it could be unloaded; None: it has work, or stays for ever."""
        may_go = self.profile.is_lazy and self._is_idle and not self._is_stopped
        may_go = may_go and self.state != "failed"  # it is tried again by `load` alone
        return self._idle_since if may_go else None

    def start(self) -> None:
        """Begin to load, if it is eager."""
        if self._inner is not None:
            self._holds_memory = True
            self._inner.start()
            self._watch(self._inner)

    def load(self) -> None:
        """Begin to load, if it is not there. One that has failed is tried again."""
        if self._begin_to_load():
            self._is_called = True

    async def unload(self) -> None:
        """End its processes, unless it is eager or has work; returns when they are gone."""
        if self.idle_since is None:
            return
        if self._inner is not None and not self._unloading:
            self._unloading = asyncio.create_task(self._end(self._dismissed(self._inner)))
        if self._unloading:
            await asyncio.shield(self._unloading)

    async def settled(self) -> ReplicaState:
        """Wait until it is ready, or never will be, or nobody loads it."""
        while self._loading:
            await asyncio.wait({self._loading})
        return self.state if self._inner is None else await self._inner.settled()

    async def ended(self) -> None:
        """Wait until it has failed for good or was stopped."""
        await self._ended.wait()

    def submit(self, request: GenerationRequest, publish: Publish) -> None:
        """Draw a request, when it is loaded. Raises NotReady."""
        if self.state not in ("unloaded", "starting") or not self.profile.is_lazy:
            self._pass_on(request, publish)
            return
        self._waiting[request.id] = (request, publish)
        self._busy()
        self._begin_to_load()

    def cancel(self, request_id: str) -> None:
        """Stop drawing a request. An unknown id is ignored."""
        if found := self._waiting.pop(request_id, None):
            found[1](CancelledEvent(request_id))
            self._leave_line()
            self._rest()
        elif self._inner is not None:
            self._inner.cancel(request_id)

    async def stop(self) -> None:
        """End. What is still open is published as failed."""
        self._is_stopped = True
        self._busy()  # nothing is unloaded any more
        if self._loading:
            self._loading.cancel()
            await asyncio.wait({self._loading})
        if self._unloading:
            await asyncio.wait({self._unloading})
        if self._inner is not None:
            await self._inner.stop()
        self._fail_waiting("the server is shutting down")
        self._ended.set()
        if self._watching:
            self._watching.cancel()

    # ---- inside

    @property
    def _is_idle(self) -> bool:
        return not (self._open or self._waiting or self._loading)

    def _begin_to_load(self) -> bool:
        """Begin to load, unless it is there; whether it is on its way now."""
        is_there = self._inner is not None and self._inner.state != "failed"
        if not (is_there or self._loading or self._is_stopped):
            self._ended.clear()
            self._loading = asyncio.create_task(self._load(), name=f"fleet.load {self.name}")
        return self._loading is not None

    def _leave_line(self) -> None:
        """Want no memory any more that was not given yet, if nobody wants the model."""
        if self._waiting or self._is_called or self._inner is not None or not self._loading:
            return
        self._loading.cancel()
        self._loading = None
        self.on_change()

    async def _load(self) -> None:
        try:
            if self._unloading:
                await asyncio.wait({self._unloading})
            if self._inner is not None:  # it has failed
                await self._end(self._dismissed(self._inner))
            async with self._budget.room_for(self):
                self._inner = inner = self._make()
                self._holds_memory = True
            inner.start()
            _log.info("profile %s is being loaded", self.name)
            await inner.settled()
            self._watch(inner)
        except NotReady as exc:
            _log.warning("%s", exc.message)
        finally:
            if self._loading is asyncio.current_task():  # else it has left the line
                self._loading, self._is_called = None, False
                self._loaded()

    def _loaded(self) -> None:
        """Pass on what has waited, if it came so far."""
        if self._inner is None or self._inner.state != "ready":
            self._fail_waiting(self.reason)
        waiting, self._waiting = self._waiting, {}
        for request, publish in waiting.values():
            try:
                self._pass_on(request, publish)
            except FluxlineError as exc:
                publish(exc)
        self._rest()
        self.on_change()

    def _dismissed(self, inner: Replica) -> Replica:
        """Part with the replicas, but not with what is known by them."""
        self._known, self._measured_bytes = self.models, self._measured()
        self._restarts += inner.restarts
        self._inner = None
        return inner

    def _measured(self) -> int:
        return max(self._measured_bytes, sum(map(_bytes_of, self.stats)))

    async def _end(self, inner: Replica) -> None:
        await inner.stop()
        self._holds_memory, self._unloading = False, None
        _log.info("profile %s is unloaded", self.name)
        self._budget.changed()
        self.on_change()

    def _pass_on(self, request: GenerationRequest, publish: Publish) -> None:
        if self._inner is None:
            raise NotReady(f"not ready: {self.reason}", retry_after_s=2.0)

        def take(news: Event | FluxlineError) -> None:
            if isinstance(news, ImageReady):
                news = ImageReady(news.request_id, replace(news.image, profile=self.name))
            elif isinstance(news, Terminal | FluxlineError):
                self._open.discard(request.id)
                self._rest()
            publish(news)

        self._open.add(request.id)
        self._busy()
        try:
            self._inner.submit(request, take)
        except BaseException:
            self._open.discard(request.id)
            self._rest()
            raise

    def _fail_waiting(self, reason: str) -> None:
        waiting, self._waiting = self._waiting, {}
        for request_id, (_, publish) in waiting.items():
            publish(Failed(request_id, CapacityError.code, reason))

    def _busy(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _rest(self) -> None:
        """Take note that there may be nothing to do any more."""
        if not self._is_idle or self._is_stopped:
            return
        self._idle_since = time.monotonic()
        self._budget.changed()
        self._busy()
        if self.profile.idle_unload_s is not None and self._inner is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self.profile.idle_unload_s, self._idled)

    def _idled(self) -> None:
        self._leaving = asyncio.create_task(self.unload(), name=f"fleet.unload {self.name}")

    def _watch(self, inner: Replica) -> None:
        """Hear of it when it fails for good; being unloaded is no failure."""

        async def watch() -> None:
            await inner.ended()
            if inner is self._inner:
                self._ended.set()
                self._budget.changed()
                self.on_change()

        self._watching = asyncio.create_task(watch(), name=f"fleet.watch {self.name}")


def _bytes_of(stats: EngineStats) -> int:
    """Memory that an engine's process takes where memory is short: on its card, if it has one."""
    return stats.device_bytes_reserved or stats.process_bytes
