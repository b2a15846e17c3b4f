"""The jobs this server has at hand: their feeds, who waits, and how long it will take."""

import asyncio
from collections.abc import Iterator

from fluxline.fleet.router import Router
from fluxline.jobs import JobRow
from fluxline.request import Done, ImageReady, Queued
from fluxline.service.feed import Feed, News
from fluxline.service.meter import Meter
from fluxline.service.pace import Pace
from fluxline.service.record import told_of

LINGER_S = 15.0  # for which a job is kept at hand after its end


class Register:
    """Feeds by the ids of their jobs, and the latest by what was sent. Lives on one event loop."""

    def __init__(self, router: Router) -> None:
        self.pace = Pace()
        self.meter = Meter(router, lambda: self)
        self._feeds: dict[str, Feed] = {}
        self._sent: dict[tuple[str, str], Feed] = {}  # by owner and fingerprint

    def __iter__(self) -> Iterator[Feed]:
        """Those that are not over."""
        return iter([feed for feed in self._feeds.values() if not feed.is_over])

    @property
    def waiting(self) -> int:
        """Jobs of which no picture has begun."""
        return sum(not feed.has_started for feed in self)

    @property
    def running(self) -> int:
        """Jobs of which a picture has begun."""
        return sum(feed.has_started for feed in self)

    @property
    def cost(self) -> float:
        """Predicted, of all that is not over."""
        return sum(feed.cost for feed in self)

    def get(self, job_id: str) -> Feed | None:
        """The feed of a job, if it is at hand."""
        return self._feeds.get(job_id)

    def of(self, row: JobRow) -> Feed:
        """The feed of a job that waits or is claimed; one that came from elsewhere gets its own."""
        feed = self.get(row.id)
        if feed is None or feed.is_over:
            feed = self.enter(Feed(told_of(row), cost=row.cost, door=row.door))
        return feed

    def enter(self, feed: Feed) -> Feed:
        """Keep the books on a job from now on."""
        position = self.waiting
        feed.predicted_s = self.pace.seconds(self.cost + feed.cost)
        self._feeds[feed.request.id] = feed
        self.pace.begin(self.waiting + self.running)
        feed.publish(Queued(feed.request.id, position))
        feed.observe = self._observe
        return feed

    def note(self, owner: str, fingerprint: str, feed: Feed) -> None:
        """Remember what was sent, for when it is sent again."""
        self._sent[owner, fingerprint] = feed

    def sent(self, owner: str, fingerprint: str) -> Feed | None:
        """The job of what was sent before, unless it failed."""
        return self._sent.get((owner, fingerprint))

    def unnote(self, feed: Feed) -> None:
        """Forget what was sent for a job: sent again, it is another."""
        for key in [key for key, known in self._sent.items() if known is feed]:
            del self._sent[key]

    def forget(self, feed: Feed) -> None:
        """Have a job at hand no longer."""
        if self._feeds.get(feed.request.id) is feed:
            del self._feeds[feed.request.id]
        self.unnote(feed)

    def let_go(self, feed: Feed) -> None:
        """Keep no books on a job any more."""
        feed.observe = lambda feed, news: None
        self.forget(feed)

    def _observe(self, feed: Feed, news: News) -> None:
        self.meter.observe(feed, news)
        if isinstance(news, ImageReady):
            self.pace.picture(feed.cost / feed.request.count)
        if feed.is_over:
            if not isinstance(news, Done):
                self.unnote(feed)
            asyncio.get_running_loop().call_later(LINGER_S, self.forget, feed)
