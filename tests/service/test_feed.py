"""What followers hear of a job, however slowly they read."""

import asyncio

from fluxline.request import Done, Progress, Started
from fluxline.service.feed import LONGEST_BACKLOG, Feed
from tests.service.conftest import picture, request


async def heard(ticket):
    async with asyncio.timeout(20):
        return [event async for event in ticket]


def begun():
    feed = Feed(request())
    feed.publish(Started("a"))
    return feed


async def test_who_reads_slowly_misses_progress_and_nothing_else():
    feed = begun()
    ticket = feed.follow()
    for k in range(1000):
        feed.publish(Progress("a", index=0, evaluation=k, total=1000, preview=b"x"))
    feed.publish(picture("a", 0))
    feed.publish(Done("a"))
    told = await heard(ticket)

    assert len(told) <= LONGEST_BACKLOG + 1
    assert [type(event).__name__ for event in told[-2:]] == ["ImageReady", "Done"]
    assert (told[0], told[-3].evaluation) == (Started("a"), 999)


async def test_who_has_heard_the_end_hears_nothing_more():
    feed = begun()
    feed.publish(Done("a"))
    assert await heard(feed.follow(after=2)) == []


async def test_a_number_of_an_earlier_server_hears_all():
    feed = begun()
    feed.publish(Done("a"))
    assert await heard(feed.follow(after=77)) == [Started("a"), Done("a")]
