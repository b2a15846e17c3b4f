"""Who waits for what nobody will draw: on a connection for a profile that has failed, or in the
queue for one that is not served any more."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable

from fluxline.errors import CapacityError, DeadlineExceeded, NotReady, UnknownModel
from fluxline.fleet.router import Router
from fluxline.jobs import JobRow, JobStore
from fluxline.request import Failed
from fluxline.service.clerk import Clerk, endured
from fluxline.service.feed import Feed
from fluxline.service.record import told_of

LOOK_S = 1.0  # between two looks for who waits on a profile that has failed
QUEUE_LOOK_S = 10.0  # and for what waits for other servers' profiles
UNSERVED_S = 600.0
"""For which a job waits for a profile that no server of a shared database seems to have."""


class Stranded:
    """Lets nobody wait in vain. Lives on one event loop.

    strays: feeds of jobs that were accepted here and are not drawn here. why_not: why the server
    draws nothing at all; empty when it does.
    """

    def __init__(
        self,
        router: Router,
        store: JobStore,
        clerk: Clerk,
        *,
        strays: Callable[[], Iterable[Feed]],
        why_not: Callable[[], str],
    ) -> None:
        self._router, self._store, self._clerk = router, store, clerk
        self._strays, self._why_not = strays, why_not
        self._missed: dict[str, float] = {}  # since when nobody was seen to draw a profile's jobs

    async def bequeath(self) -> None:
        """Give what waits for profiles that are gone to those that have its model, or the first.

        Only where no other server can have these profiles: who shares a database leaves them.
        Raises NotReady.
        """
        if self._store.is_shared:
            return
        for row in await self._clerk.do(self._store.strange, self._served()):
            heir = self._router.heir(told_of(row).model)
            await self._clerk.do(self._store.adopt, row.id, heir.name)

    async def turn_away(self, feeds: Iterable[Feed]) -> None:
        """End what was asked on open connections and will not be drawn any more."""
        why = self._why_not()
        for feed in list(feeds):
            await self._turn_away(feed, why)

    async def look_at_connections(self) -> None:
        """Tell who waits on a connection for a profile that has failed, and nobody stands in."""
        while True:
            await asyncio.sleep(LOOK_S)
            for feed in [feed for feed in self._strays() if feed.is_fleeting]:
                # asked of each when it is its turn: the profile may be back since the one before
                if why := self._router.why_never(feed.request):
                    await endured(self._turn_away(feed, why))

    async def look_at_queue(self) -> None:
        """Give up what waits for profiles that no server has, where several share the queue."""
        while self._store.is_shared:
            await asyncio.sleep(QUEUE_LOOK_S)
            await endured(self._give_up())

    async def _turn_away(self, feed: Feed, why: str) -> None:
        with contextlib.suppress(NotReady):  # then the next start does it
            await self._clerk.do(self._store.cancel, feed.request.id)
        feed.publish(Failed(feed.request.id, CapacityError.code, f"not ready: {why}"))

    async def _give_up(self) -> None:
        rows = await self._clerk.do(self._store.strange, self._served())
        drawn = await self._clerk.do(self._store.begun_since, time.time() - UNSERVED_S)
        now = time.monotonic()
        waited_for = {row.profile for row in rows} - drawn
        self._missed = {name: self._missed.get(name, now) for name in waited_for}
        for row in rows:
            missed_s = now - self._missed.get(row.profile, now)
            if row.deadline is not None and row.deadline < time.time():
                await self._fail(row, DeadlineExceeded.code, "the job waited beyond its deadline")
            elif missed_s >= UNSERVED_S:
                message = f"profile {row.profile} is served by no server: nobody drew for it"
                await self._fail(row, UnknownModel.code, f"{message} in {UNSERVED_S / 60:.0f} min")

    async def _fail(self, row: JobRow, code: str, message: str) -> None:
        await self._clerk.do(self._store.give_up, row.id, code, message)

    def _served(self) -> list[str]:
        return [one.name for one in self._router]
