"""What is old is forgotten, what is new is kept, and a store that is away is no disaster."""

import asyncio

import pytest

from fluxline.errors import StorageError
from fluxline.jobs import JobStore, Limits, NewJob
from fluxline.service.clerk import Clerk
from fluxline.service.sweeper import Sweeper


@pytest.fixture
def clerk():
    clerk = Clerk()
    yield clerk
    clerk.close()


async def test_old_jobs_are_forgotten_and_new_ones_and_waiting_ones_kept(database, clerk, pictures):
    for name, at in (("old", 1.0), ("new", 2e10)):
        store = JobStore(database, clock=lambda at=at: at)
        store.accept(NewJob(id=name, request="{}", fingerprint=""), Limits(waiting=9))
        store.cancel(name)
    store.accept(NewJob(id="waits", request="{}", fingerprint=""), Limits(waiting=9))

    await Sweeper(store, clerk, pictures, keep_days=1, max_bytes=None).sweep()

    assert [row.id for row in store.recent()] == ["new", "waits"]


async def test_pictures_beyond_the_limit_go_and_the_newest_stays(store, clerk, pictures):
    first = await pictures.put(b"a" * 100, "png")
    await asyncio.sleep(1.1)  # the store's clock counts seconds
    second = await pictures.put(b"b" * 100, "png")

    await Sweeper(store, clerk, pictures, keep_days=None, max_bytes=150).sweep()

    assert await pictures.get(first.key) is None
    assert await pictures.get(second.key) == b"b" * 100


async def test_a_store_that_is_away_is_swept_another_time(store, clerk, caplog):
    class Away:
        async def sweep(self, **limits):
            raise StorageError("the store could not be listed")

    running = asyncio.create_task(Sweeper(store, clerk, Away(), keep_days=1, max_bytes=1).run())
    while "could not be listed" not in caplog.text:
        await asyncio.sleep(0.002)
    running.cancel()
