"""Several replicas that serve as one: each request goes where the least work is outstanding.

A request with many pictures may be spread: cut into parts that different replicas draw, its events
put together again. A part whose replica fails for good goes to another. Decides nothing else.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from fluxline.ability import EngineStats, ModelInfo, cost
from fluxline.errors import CapacityError, FluxlineError, NotReady
from fluxline.fleet.replica import Publish, Replica, ReplicaState
from fluxline.request import (
    CancelledEvent,
    Done,
    Event,
    Failed,
    GenerationRequest,
    ImageReady,
    Progress,
    Queued,
    Started,
    Terminal,
)


@dataclass(slots=True, kw_only=True)
class _Part:
    """Some of a request's pictures, at one replica."""

    request: GenerationRequest  # what the replica is asked
    first: int  # index of its first picture in the whole request
    member: Replica
    cost: float  # predicted, of what is still to be drawn
    delivered: set[int] = field(default_factory=set)  # indices in the part


@dataclass(slots=True, kw_only=True)
class _Whole:
    """A request and its parts that have not ended."""

    request: GenerationRequest
    publish: Publish
    parts: dict[str, _Part] = field(default_factory=dict)
    is_queued: bool = False
    is_started: bool = False


class Pool:
    """A `Replica` made of replicas. Lives on one event loop."""

    def __init__(self, members: Sequence[Replica]) -> None:
        self._members = list(members)
        self._open: dict[str, _Whole] = {}

    @property
    def state(self) -> ReplicaState:
        """Ready as soon as one member is, failed only when all are."""
        states = [member.state for member in self._members]
        order: tuple[ReplicaState, ...] = ("ready", "starting", "restarting", "stopped", "failed")
        return next(state for state in order if state in states)

    @property
    def reason(self) -> str:
        """Why it is not ready; empty when it is."""
        return next(member.reason for member in self._members if member.state == self.state)

    @property
    def models(self) -> tuple[ModelInfo, ...]:
        """What it serves; empty until one member was ready."""
        return next((member.models for member in self._members if member.models), ())

    @property
    def restarts(self) -> int:
        """How often members had to be started again."""
        return sum(member.restarts for member in self._members)

    @property
    def stats(self) -> tuple[EngineStats, ...]:
        """What the members' engines have done, in the members' order."""
        return tuple(stats for member in self._members for stats in member.stats)

    @property
    def ready(self) -> int:
        """How many members can be given work now."""
        return sum(member.state == "ready" for member in self._members)

    def start(self) -> None:
        """Let all begin to load. Returns at once."""
        for member in self._members:
            member.start()

    async def settled(self) -> ReplicaState:
        """Wait until one member is ready, or none ever will be."""
        waits = {asyncio.ensure_future(member.settled()) for member in self._members}
        try:
            while waits and self.state != "ready":
                _, waits = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        return self.state

    async def ended(self) -> None:
        """Wait until every member has failed for good or was stopped."""
        await asyncio.gather(*(member.ended() for member in self._members))

    def submit(self, request: GenerationRequest, publish: Publish) -> None:
        """Draw a request, on up to `request.spread` members. Raises NotReady."""
        if self.state != "ready":
            raise NotReady(f"not ready: {self.reason}", retry_after_s=2.0)
        whole = self._open[request.id] = _Whole(request=request, publish=publish)
        count = min(request.spread, request.count, self.ready)
        try:
            for k, (part, first) in enumerate(_cut(request, count)):
                renamed = part if count == 1 else replace(part, id=f"{request.id}.{k}")
                self._place(whole, renamed, first)
        except FluxlineError:
            self._forget(whole)
            raise

    def cancel(self, request_id: str) -> None:
        """Stop drawing a request. An unknown id is ignored."""
        if whole := self._open.get(request_id):
            for part in whole.parts.values():
                part.member.cancel(part.request.id)

    async def stop(self) -> None:
        """End every member. What is still open is published as failed."""
        await asyncio.gather(*(member.stop() for member in self._members))

    def _place(self, whole: _Whole, request: GenerationRequest, first: int) -> None:
        ready = [member for member in self._members if member.state == "ready"]
        if not ready:
            raise NotReady(f"not ready: {self.reason}", retry_after_s=2.0)
        member = min(ready, key=self._outstanding)
        work = cost(request, member.models[0])
        part = _Part(request=request, first=first, member=member, cost=work)
        whole.parts[request.id] = part
        member.submit(request, self._listener(whole, part))

    def _outstanding(self, member: Replica) -> float:
        parts = (part for whole in self._open.values() for part in whole.parts.values())
        return sum(part.cost for part in parts if part.member is member)

    def _listener(self, whole: _Whole, part: _Part) -> Callable[[Event | FluxlineError], None]:
        def take(news: Event | FluxlineError) -> None:
            if part.request.id not in whole.parts:  # what comes after the end of the whole
                return
            if isinstance(news, FluxlineError):
                self._end(whole, news)
            elif isinstance(news, Terminal):
                self._part_ended(whole, part, news)
            else:
                self._pass_on(whole, part, news)

        return take

    def _pass_on(self, whole: _Whole, part: _Part, event: Event) -> None:
        request_id = whole.request.id
        match event:
            case Queued(position=position) if not whole.is_queued:
                whole.is_queued = True
                whole.publish(Queued(request_id, position))
            case Started() if not whole.is_started:
                whole.is_started = True
                whole.publish(Started(request_id))
            case Progress(index=index):
                moved = replace(event, request_id=request_id, index=part.first + index)
                whole.publish(moved)
            case ImageReady(image=image):
                part.delivered.add(image.index)
                part.cost *= 1 - 1 / (part.request.count - len(part.delivered) + 1)
                moved_image = replace(image, index=part.first + image.index)
                whole.publish(ImageReady(request_id, moved_image))

    def _part_ended(self, whole: _Whole, part: _Part, event: Terminal) -> None:
        request_id = whole.request.id
        match event:
            case Done():
                del whole.parts[part.request.id]
                if not whole.parts:
                    self._end(whole, Done(request_id))
            case CancelledEvent():
                self._end(whole, CancelledEvent(request_id))
            case Failed(code=code) if code == CapacityError.code and part.member.state == "failed":
                self._move(whole, part, event)
            case Failed(code=code, message=message):
                self._end(whole, Failed(request_id, code, message))

    def _move(self, whole: _Whole, part: _Part, event: Failed) -> None:
        """Draw what is left of a part elsewhere, its replica having failed for good."""
        del whole.parts[part.request.id]
        try:
            for k, (left, first) in enumerate(_runs_left(part)):
                self._place(whole, replace(left, id=f"{part.request.id}+{k}"), first)
        except NotReady:
            self._end(whole, Failed(whole.request.id, event.code, event.message))
        else:
            if not whole.parts:
                self._end(whole, Done(whole.request.id))

    def _end(self, whole: _Whole, news: Terminal | FluxlineError) -> None:
        """End a request once."""
        self._forget(whole)
        whole.publish(news)

    def _forget(self, whole: _Whole) -> None:
        """Hold a request no longer; what is left of its parts is not drawn in vain."""
        parts, whole.parts = whole.parts, {}
        self._open.pop(whole.request.id, None)
        for part in parts.values():
            part.member.cancel(part.request.id)


def _cut(request: GenerationRequest, count: int) -> list[tuple[GenerationRequest, int]]:
    """Contiguous parts of nearly equal length, the first ones longer, with their first index."""
    if count == 1:
        return [(request, 0)]
    pictures, parts, first = request.pictures(), [], 0
    for k in range(count):
        length = len(pictures) // count + (k < len(pictures) % count)
        parts.append((replace(request, plan=pictures[first : first + length]), first))
        first += length
    return parts


def _runs_left(part: _Part) -> list[tuple[GenerationRequest, int]]:
    """What of a part is not delivered, as contiguous runs with their first index in the whole."""
    runs: list[tuple[GenerationRequest, int]] = []
    pictures = part.request.pictures()
    start = 0
    for k in range(len(pictures) + 1):
        if k == len(pictures) or k in part.delivered:
            if k > start:
                plan = pictures[start:k]
                runs.append((replace(part.request, plan=plan), part.first + start))
            start = k + 1
    return runs
