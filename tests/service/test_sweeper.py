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


async def test_a_store_that_is_away_is_swept_another_time(store, clerk, monkeypatch, caplog):
    class Away:
        tries = 0

        async def sweep(self, **limits):
            self.tries += 1
            raise StorageError("the store could not be listed")

    monkeypatch.setattr("fluxline.service.sweeper.EVERY_S", 0)
    away = Away()
    running = asyncio.create_task(Sweeper(store, clerk, away, keep_days=1, max_bytes=1).run())
    async with asyncio.timeout(20):
        while away.tries < 2:
            await asyncio.sleep(0.002)
    assert not running.done()
    assert "could not be listed" in caplog.text
    running.cancel()
