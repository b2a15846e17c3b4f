"""How much of what callers send may be held at once, and the line of those who wait for room."""

import asyncio

MOST_HELD_BYTES = 512 * 2**20
"""Of all bodies together, or of all messages, until they are answered."""


class Room:
    """Holds so many bytes and no more; who finds no room waits, first come, first served.

    Lives on one event loop.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most, self._held = most_bytes, 0
        self._turn, self._left = asyncio.Lock(), asyncio.Event()

    async def take(self, size: int, patience_s: float) -> None:
        """Take bytes, once there is room for them. Raises TimeoutError if there is none in time."""
        async with asyncio.timeout(patience_s), self._turn:
            while self._held + size > self._most:
                self._left.clear()
                await self._left.wait()
            self._held += size

    def leave(self, size: int) -> None:
        """Give bytes back."""
        self._held -= size
        self._left.set()
