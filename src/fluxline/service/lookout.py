"""Looks after jobs that are asked for here and drawn by another server of the same database.

Of those only the beginning and the end are seen: the pictures come out of the store.
"""

import asyncio
import contextlib
from collections.abc import Callable

from fluxline.errors import NotReady
from fluxline.jobs import JobRow, JobState, JobStore
from fluxline.request import Started
from fluxline.service import record
from fluxline.service.clerk import Clerk
from fluxline.service.feed import Feed
from fluxline.service.register import Register
from fluxline.service.replay import replay
from fluxline.storage import Pictures

WATCH_S = 0.5  # between two looks


class Lookout:
    """Tells the feeds of such jobs. Lives on one event loop. holds: whether a job is drawn here."""

    def __init__(
        self,
        store: JobStore,
        clerk: Clerk,
        pictures: Pictures,
        register: Register,
        *,
        holder: str,
        holds: Callable[[str], bool],
    ) -> None:
        self._store, self._clerk, self._pictures = store, clerk, pictures
        self._register, self._holder, self._holds = register, holder, holds
        self._strangers: dict[str, Feed] = {}

    @property
    def strangers(self) -> list[Feed]:
        """The feeds of jobs that were accepted elsewhere, are followed here and not over."""
        return list(self._strangers.values())

    async def feed_of(self, row: JobRow) -> Feed:
        """A feed of a job that is over, or that another server holds."""
        if (known := self._strangers.get(row.id)) is not None:
            return known
        feed = Feed(record.request_of(row.request), cost=row.cost)
        if row.is_over:
            await replay(row, feed, self._pictures)
        else:
            self._strangers[row.id] = feed
        return feed

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await asyncio.sleep(WATCH_S)
            with contextlib.suppress(NotReady):  # the database itself has said so
                await self.look()

    async def look(self) -> None:
        """Look once. Raises NotReady."""
        ours = {feed.request.id: feed for feed in self._register}
        feeds = {
            job_id: feed
            for job_id, feed in (self._strangers | ours).items()
            if not self._holds(job_id)
        }
        if not feeds:
            return
        for row in await self._clerk.do(self._store.those, list(feeds)):
            feed = feeds[row.id]
            if row.is_over:
                self._strangers.pop(row.id, None)
                self._register.hand_over(feed)
                await replay(row, feed, self._pictures)
            elif row.holder != self._holder and not feed.has_started:
                feed.publish(Started(row.id))
