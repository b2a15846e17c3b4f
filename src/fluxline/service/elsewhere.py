"""Jobs that others draw, or that nobody draws any more: their rows are looked at now and then."""

import asyncio
from collections.abc import Callable, Iterable

from fluxline.jobs import JobRow, JobStore
from fluxline.request import CancelledEvent
from fluxline.service.clerk import Clerk, endured
from fluxline.service.feed import Feed
from fluxline.service.record import told_of
from fluxline.service.replay import replay
from fluxline.storage import Pictures

LOOK_S = 0.5


class Elsewhere:
    """Tells the ends of jobs that are not held here. Lives on one event loop.

    strays: feeds of jobs that were accepted here and that another server may have claimed.
    let_go: called with one that it drew, before its end is told: the other server counts it.
    """

    def __init__(
        self,
        store: JobStore,
        clerk: Clerk,
        pictures: Pictures,
        *,
        strays: Callable[[], Iterable[Feed]],
        let_go: Callable[[Feed], None],
    ) -> None:
        self._store, self._clerk, self._pictures = store, clerk, pictures
        self._strays, self._let_go = strays, let_go
        self._feeds: dict[tuple[str, bool], Feed] = {}

    async def feed(self, row: JobRow, *, with_files: bool) -> Feed:
        """The feed of a job. with_files: somebody wants its pictures, not only to hear of them."""
        if row.is_over:
            feed = Feed(told_of(row), cost=row.cost, keeps=with_files)
            await self._tell(feed, row)
            return feed
        known = self._feeds.get((row.id, with_files))
        if known is None or known.is_over:
            known = Feed(told_of(row), cost=row.cost, keeps=with_files)
            self._feeds[row.id, with_files] = known
        return known

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await asyncio.sleep(LOOK_S)
            await endured(self._look())

    async def _look(self) -> None:
        self._feeds = {
            key: feed for key, feed in self._feeds.items() if feed.followers and not feed.is_over
        }
        feeds = [*self._feeds.values(), *self._strays()]
        if not feeds:
            return
        ids = list({feed.request.id for feed in feeds})
        still = await self._clerk.do(self._store.open_among, ids)
        ended = [job_id for job_id in ids if job_id not in still]
        rows = {row.id: row for row in await self._clerk.do(self._store.those, ended)}
        for feed in feeds:
            row = rows.get(feed.request.id)
            if feed.request.id not in still and (row is None or row.is_over):
                self._let_go(feed)
                await self._tell(feed, row)

    async def _tell(self, feed: Feed, row: JobRow | None) -> None:
        if row is None:  # it was over so long ago that it was forgotten
            feed.publish(CancelledEvent(feed.request.id))
        else:
            await replay(row, feed, self._pictures if feed.keeps else None)
