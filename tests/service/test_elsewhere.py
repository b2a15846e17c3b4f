"""What is read of jobs that nobody draws here. Every look is the test's own."""

import asyncio

import pytest

from fluxline.jobs import JobStore
from fluxline.request import CancelledEvent
from fluxline.service import elsewhere
from tests.service.conftest import STORED, request


class CountingStore(JobStore):
    """Notes whose rows are read whole."""

    def __init__(self, database):
        super().__init__(database)
        self.read = []

    def those(self, ids):
        self.read += ids
        return super().those(ids)


@pytest.fixture
def store(database):
    return CountingStore(database)


async def test_of_a_long_queue_only_what_is_over_is_read(opened, store, monkeypatch):
    monkeypatch.setattr(elsewhere, "LOOK_S", 1e9)
    service = await opened(window=0, queue_limit=99)
    tickets = {name: await service.submit(request(name), STORED) for name in "abc"}
    await service._elsewhere._look()
    assert store.read == []

    store.cancel("b")  # as another server would
    await service._elsewhere._look()
    await service._elsewhere._look()

    async with asyncio.timeout(20):
        heard = [event async for event in tickets["b"]]
    assert (store.read, heard[-1]) == (["b"], CancelledEvent("b"))
    await service.close()
