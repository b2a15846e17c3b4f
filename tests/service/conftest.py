"""A service over a replica whose every word the test speaks, and a database of the test."""

import asyncio

import pytest

from fluxline.ability import EngineStats
from fluxline.errors import NotReady
from fluxline.fleet.on_demand import OnDemand
from fluxline.fleet.router import Router
from fluxline.jobs import Database, JobStore
from fluxline.profiles import Profile
from fluxline.request import CancelledEvent, Done, Failed, GenerationRequest, Started
from fluxline.service import Service, Terms
from fluxline.storage import open_pictures
from tests.worker.fake_engine import INFO, FakeEngine

ALIASES = {"dall-e-3": "default", "other": "fake"}
STORED = Terms(is_attended=False)


class ScriptedReplica:
    """Accepts everything and says only what a test makes it say."""

    def __init__(self):
        self.state, self.reason, self.models, self.restarts = "ready", "", (INFO,), 0
        self.publish = {}
        self.requests = {}
        self.cancelled = []

    @property
    def stats(self):
        return (EngineStats(forwards=2, rows=6, tokens=480, batch_tokens=120),)

    @property
    def ready(self):
        return int(self.state == "ready")

    def start(self): ...

    async def settled(self):
        return self.state

    async def ended(self): ...

    async def stop(self):
        for name, publish in self.publish.items():
            publish(Failed(name, "overloaded", "the server is shutting down"))

    def submit(self, request, publish):
        if self.state != "ready":
            raise NotReady(self.reason, retry_after_s=1)
        self.publish[request.id] = publish
        self.requests[request.id] = request

    def cancel(self, request_id):
        self.cancelled.append(request_id)
        self.publish[request_id](CancelledEvent(request_id))

    async def given(self, name):
        """Wait until it was given a request; return what its events are published with."""
        await until(lambda: name in self.publish)
        return self.publish[name]


@pytest.fixture
def replica():
    return ScriptedReplica()


@pytest.fixture
def database(database_url):
    database = Database(database_url)
    yield database
    database.close()


@pytest.fixture
def store(database):
    return JobStore(database)


@pytest.fixture
def pictures():
    return open_pictures("memory:")


@pytest.fixture
def opened(replica, store, pictures):
    """Make a service; the same store may be opened again, as after a restart."""

    async def make(replica=replica, pictures=pictures, **options):
        options = {"queue_limit": 2, "aliases": ALIASES, **options}
        service = Service(alone(replica), store, pictures, **options)
        await service.start()
        return service

    return make


@pytest.fixture
async def service(opened, replica):
    service = await opened()
    yield service
    await replica.stop()
    await service.close()


def alone(replica):
    """A router of one profile, which is that replica."""
    return Router([OnDemand(Profile(name="fake", model="fake"), lambda: replica)])


async def until(truth):
    """Wait until something is true, on a busy machine too."""
    async with asyncio.timeout(20):
        while not truth():
            await asyncio.sleep(0.001)


async def drawn(replica, name, count=1):
    """Have a replica draw what it is given under a name."""
    publish = await replica.given(name)
    for event in (Started(name), *(picture(name, i) for i in range(count)), Done(name)):
        publish(event)


async def finished(store, name):
    """The row of a job, once it is over."""
    await until(lambda: store.get(name).is_over)
    return store.get(name)


async def vanished(service):
    """Leave a service as a process that is gone leaves it: nothing more is claimed or written."""
    for task in service._dispatcher._tasks:
        task.cancel()
    await service._clerk.do(lambda: None)  # its thread may be in the midst of a claim


def request(name="a", **fields):
    return GenerationRequest(id=name, prompt="a fox", seed=1, **fields)


def picture(name, index):
    return FakeEngine()._ready(request(name, n=index + 1), index)
