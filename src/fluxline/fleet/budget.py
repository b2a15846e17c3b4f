"""How much memory the loaded profiles may take together, and who must go when it is too much."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Protocol

from fluxline.errors import NotReady
from fluxline.profiles import GIB

LONGEST_TURN_S = 30.0
"""For which a lazy profile that always has work keeps its memory while another waits for it."""


class Tenant(Protocol):
    """What a budget asks of a profile."""

    @property
    def name(self) -> str:
        """How people call it."""

    @property
    def stays(self) -> bool:
        """Whether it is never unloaded."""

    @property
    def held_bytes(self) -> int:
        """Memory that it takes now; 0 while it is not loaded."""

    @property
    def needed_bytes(self) -> int:
        """Memory that it takes when it is loaded."""

    @property
    def idle_since(self) -> float | None:
        """Since when it could be unloaded, monotonic; None: it has work, or stays for ever."""

    async def unload(self) -> None:
        """Give the memory back, if it still has no work."""


@dataclass(frozen=True, slots=True, eq=False)
class _Waiter:
    """Who waits for memory, and since when, monotonic."""

    tenant: Tenant
    since: float = field(default_factory=time.monotonic)

    @property
    def patience_s(self) -> float:
        """How long it still lets others have their way; none is left at 0."""
        return max(0.0, self.since + LONGEST_TURN_S - time.monotonic())


class Budget:
    """Lets profiles load in the order they come. Lives on one event loop. limit_bytes None: no
    limit.

    Who finds room beside what is loaded passes by those before it, until the first of them has
    lost its patience; then nobody does, and those who hold what it needs are given no more work.
    """

    def __init__(self, limit_bytes: int | None = None) -> None:
        self._limit_bytes = limit_bytes
        self.tenants: Sequence[Tenant] = ()
        self._line: list[_Waiter] = []
        self._entering: list[Tenant] = []  # they have room, and do not hold it yet
        self._changed = asyncio.Event()

    def changed(self) -> None:
        """Look again: a profile has become idle, has failed or was unloaded."""
        self._changed.set()
        self._changed = asyncio.Event()

    def why_never(self, tenant: Tenant) -> str:
        """Why a profile will not fit as long as those stay that are never unloaded; or nothing."""
        staying = [one for one in self._others(tenant) if one.stays]
        held, needed = sum(self._held(one) for one in staying), tenant.needed_bytes
        if self._limit_bytes is None or not held or held + needed <= self._limit_bytes:
            return ""
        names = ", ".join(one.name for one in staying)
        return (
            f"profile {tenant.name} needs {needed / GIB:.1f} GiB of the {self._limit_bytes / GIB:g}"
            f" that memory_gb allows, and {names} stays loaded with {held / GIB:.1f}"
        )

    def must_leave(self, tenant: Tenant) -> bool:
        """Whether a profile takes no more work, so that who has waited for long gets its memory."""
        if not self._line or self._line[0].patience_s:
            return False
        first = self._line[0].tenant
        lacking = self._lacking_bytes(first)
        may_go = [one for one in self._others(first) if not one.stays]
        for one in sorted(may_go, key=lambda one: one.idle_since is None):
            if lacking <= 0:  # no more of them than it takes
                break
            if one is tenant:
                return True
            lacking -= self._held(one)
        return False

    @asynccontextmanager
    async def room_for(self, tenant: Tenant) -> AsyncGenerator[None]:
        """Wait until a profile fits beside what is loaded, unloading what was used longest ago.

        What is entered inside must hold the memory before it is left. Raises NotReady for what
        will never fit.
        """
        waiter = _Waiter(tenant)
        self._line.append(waiter)
        try:
            while not self._may_enter(waiter):
                if why := self.why_never(tenant):
                    raise NotReady(why, retry_after_s=10.0)
                await self._come_nearer(waiter)
            self._entering.append(tenant)
        finally:
            self._line.remove(waiter)
            self.changed()
        try:
            yield
        finally:
            self._entering.remove(tenant)
            self.changed()

    # ---- inside

    def _may_enter(self, waiter: _Waiter) -> bool:
        if self._lacking_bytes(waiter.tenant) > 0:
            return False
        before = self._line[: self._line.index(waiter)]
        is_let_by = not before or before[0].patience_s > 0
        return is_let_by and all(self._lacking_bytes(one.tenant) > 0 for one in before)

    async def _come_nearer(self, waiter: _Waiter) -> None:
        """Have one unloaded for who is next, if that helps; else wait until something changes."""
        changed = self._changed
        if waiter is self._line[0]:
            idle = [one for one in self._others(waiter.tenant) if one.idle_since is not None]
            if self._lacking_bytes(waiter.tenant) <= sum(map(self._held, idle)):
                await min(idle, key=lambda one: one.idle_since or 0.0).unload()
                return
        with suppress(TimeoutError):  # what is held is measured anew without a word, too
            async with asyncio.timeout(self._line[0].patience_s or LONGEST_TURN_S):
                await changed.wait()

    def _lacking_bytes(self, tenant: Tenant) -> int:
        """What would have to go first. Who would be alone is let in, however much it needs."""
        held = sum(map(self._held, self._others(tenant)))
        if self._limit_bytes is None or not held:
            return 0
        return min(held, held + tenant.needed_bytes - self._limit_bytes)

    def _others(self, tenant: Tenant) -> list[Tenant]:
        return [one for one in self.tenants if one is not tenant and self._held(one)]

    def _held(self, one: Tenant) -> int:
        return one.needed_bytes if one in self._entering else one.held_bytes
