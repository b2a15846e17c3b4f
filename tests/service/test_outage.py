"""A PostgreSQL that goes down under a server, and comes back."""

import asyncio

import pytest

from fluxline.errors import DatabaseDown
from fluxline.jobs import Database, JobState
from tests.service.conftest import STORED, drawn, finished, picture, request

pytestmark = pytest.mark.slow


@pytest.fixture
def database(postgres):
    with postgres.database() as url:
        database = Database(url)
        yield database
        database.close()


@pytest.fixture
def outage(postgres):
    """Stop the database; start it again by calling what this gives."""
    postgres.stop()
    is_down = True

    def end():
        nonlocal is_down
        if is_down:
            is_down = False
            postgres.start()

    yield end
    end()


@pytest.fixture
async def running(service, replica, store):
    """A server that draws a, before the database goes down."""
    await service.submit(request("a"), STORED)
    await replica.given("a")
    return service


async def test_what_runs_is_drawn_on_and_written_down_when_the_database_is_back(
    running, outage, replica, store
):
    await drawn(replica, "a")
    await asyncio.sleep(0.5)
    outage()
    row = await finished(store, "a")
    assert (row.state, row.attempts) == (JobState.DONE, 1)


async def test_meanwhile_nothing_is_accepted_and_it_is_not_ready(running, outage, replica, store):
    with pytest.raises(DatabaseDown) as refused:
        await running.submit(request("b"), STORED)
    async with asyncio.timeout(20):
        while running.status.state == "ready":
            await asyncio.sleep(0.05)
    assert (running.status.state, "database" in running.status.reason) == ("cut_off", True)
    assert (refused.value.retry_after_s, running.status.waiting) == (5, 1)

    outage()
    async with asyncio.timeout(20):
        while running.status.state != "ready":
            await asyncio.sleep(0.05)
    await running.submit(request("c"), STORED)
    await drawn(replica, "c")
    assert (await finished(store, "c")).state == JobState.DONE
    assert store.get("b") is None


async def test_who_waits_through_it_gets_the_picture(service, replica, postgres):
    waiting = asyncio.create_task(service.draw(request("a")))
    await replica.given("a")
    postgres.stop()
    try:
        await drawn(replica, "a")
        await asyncio.sleep(0.5)
    finally:
        postgres.start()
    async with asyncio.timeout(20):
        (image,) = (await waiting).images
    assert image.data == picture("a", 0).image.data
