"""Profiles over replicas whose every word the test speaks."""

import asyncio

import pytest

from fluxline.ability import EngineStats
from fluxline.errors import NotReady
from fluxline.fleet.budget import Budget
from fluxline.fleet.on_demand import OnDemand
from fluxline.profiles import GIB, Profile
from fluxline.request import CancelledEvent, Failed, GenerationRequest
from tests.worker.fake_engine import INFO


class Scripted:
    """A replica that is ready, fails or is restarting when the test says so."""

    def __init__(self):
        self.state, self.reason, self.models, self.restarts = "starting", "it loads", (), 0
        self.stats = (EngineStats(process_bytes=2 * GIB),)
        self.held, self.given, self.cancelled, self.stops = {}, {}, [], 0
        self.may_end = asyncio.Event()
        self.may_end.set()
        self._settled, self._ended = asyncio.Event(), asyncio.Event()

    @property
    def ready(self):
        return int(self.state == "ready")

    def start(self): ...

    def turn(self, state):
        self.state, self.reason = state, "" if state == "ready" else f"it is {state}"
        self.models = (INFO,) if state == "ready" else self.models
        if state == "restarting":
            self._settled.clear()
        else:
            self._settled.set()
        if state == "failed":
            self._ended.set()

    async def settled(self):
        await self._settled.wait()
        return self.state

    async def ended(self):
        await self._ended.wait()

    def submit(self, request, publish):
        if self.state != "ready":
            raise NotReady(self.reason, retry_after_s=1)
        self.held[request.id] = publish
        self.given[request.id] = request

    def cancel(self, request_id):
        self.cancelled.append(request_id)
        if publish := self.held.pop(request_id, None):
            publish(CancelledEvent(request_id))

    async def stop(self):
        self.stops += 1
        await self.may_end.wait()
        for name, publish in self.held.items():
            publish(Failed(name, "overloaded", "it stops"))
        self.state = "stopped"
        self._settled.set()
        self._ended.set()


class Made:
    """Makes profiles, and remembers the replicas that each of them was given."""

    def __init__(self, limit_gb=None):
        self.replicas, self.profiles = {}, []
        self.budget = Budget(None if limit_gb is None else int(limit_gb * GIB))

    def profile(self, name, **fields):
        def make():
            self.replicas.setdefault(name, []).append(Scripted())
            return self.replicas[name][-1]

        fields = {"model": "mini", **fields}
        one = OnDemand(Profile(name=name, **fields), make, budget=self.budget)
        self.profiles.append(one)
        self.budget.tenants = self.profiles
        return one

    async def loaded(self, one):
        """Wait until it is being loaded; then it is ready."""
        await until(lambda: one.state == "starting" and one.name in self.replicas)
        await until(lambda: self.replicas[one.name][-1].state == "starting")
        self.replicas[one.name][-1].turn("ready")
        await one.settled()


@pytest.fixture
async def made():
    made = Made()
    yield made
    await ended(made)


@pytest.fixture
async def cramped():
    """Profiles that share 4 GiB."""
    made = Made(limit_gb=4)
    yield made
    await ended(made)


async def ended(made):
    for one in made.profiles:
        await one.stop()


async def until(truth):
    async with asyncio.timeout(20):
        while not truth():
            await asyncio.sleep(0.001)


def asked(request_id="r", **fields):
    return GenerationRequest(id=request_id, prompt="p", seed=1, **fields)
