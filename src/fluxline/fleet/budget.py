"""How much memory the loaded profiles may take together, and who must go when it is too much."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Protocol


class Tenant(Protocol):
    """What a budget asks of a profile."""

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


class Budget:
    """Lets profiles load one after another. Lives on one event loop. limit_bytes None: no limit."""

    def __init__(self, limit_bytes: int | None = None) -> None:
        self._limit_bytes = limit_bytes
        self.tenants: Sequence[Tenant] = ()
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()

    def changed(self) -> None:
        """Look again: a profile has become idle, or was unloaded."""
        self._changed.set()

    @asynccontextmanager
    async def room_for(self, tenant: Tenant) -> AsyncGenerator[None]:
        """Wait until a profile fits beside what is loaded, unloading what was used longest ago.

        What is entered inside must hold the memory before it is left.
        """
        async with self._turn:
            while self._lacks(tenant):
                self._changed.clear()
                held = [one for one in self.tenants if one.held_bytes]
                if idle := [one for one in held if one.idle_since is not None]:
                    await min(idle, key=lambda one: one.idle_since or 0.0).unload()
                else:
                    await self._changed.wait()
            yield

    def _lacks(self, tenant: Tenant) -> bool:
        if self._limit_bytes is None:
            return False
        others = sum(one.held_bytes for one in self.tenants if one is not tenant)
        return bool(others) and others + tenant.needed_bytes > self._limit_bytes
