"""Jobs of profiles that are down or gone, and what they are drawn from meanwhile."""

import asyncio
import gc
import tracemalloc
from dataclasses import replace

import pytest

from fluxline.errors import EngineError
from fluxline.fleet import router as routing
from fluxline.fleet.on_demand import OnDemand
from fluxline.fleet.router import Router
from fluxline.jobs import JobState, JobStore
from fluxline.profiles import Profile
from fluxline.request import Done, Failed
from fluxline.service import Service, Terms, stranded
from tests.service.conftest import (
    STORED,
    ScriptedReplica,
    drawn,
    finished,
    request,
    until,
    vanished,
)

MIB = 2**20


@pytest.fixture
def replicas():
    return {"one": ScriptedReplica(), "two": ScriptedReplica()}


@pytest.fixture
async def serving(replicas, store, pictures):
    """Open services of some profiles; stand-ins of one are in its place when it is down."""
    services = []

    async def make(*names, lazy=(), **options):
        members = [
            OnDemand(
                Profile(
                    name=name,
                    model="fake",
                    load="lazy" if name in lazy else "eager",
                    fallback="two" if name == "one" else "",
                ),
                lambda name=name: replicas[name],
            )
            for name in names
        ]
        service = Service(Router(members), store, pictures, queue_limit=20, **options)
        await service.start()
        services.append(service)
        return service

    yield make
    for replica in replicas.values():
        await replica.stop()
    for service in services:
        await service.close()


def down(replica):
    replica.state, replica.reason = "restarting", "it is restarting"


def back(replica):
    replica.state, replica.reason = "ready", ""


async def test_a_job_that_the_stand_in_cannot_draw_waits_for_its_own(serving, replicas, store):
    replicas["one"].models = (replace(replicas["one"].models[0], references=1),)
    service = await serving("one", "two")
    down(replicas["one"])
    await service.submit(request("edit", references=(b"x",), profile="one"), STORED)
    await service.submit(request("plain", profile="one"), STORED)
    await replicas["two"].given("plain")
    await drawn(replicas["two"], "plain")
    await finished(store, "plain")
    assert "edit" not in replicas["two"].requests
    await until(lambda: store.get("edit").state == JobState.QUEUED)

    back(replicas["one"])

    await replicas["one"].given("edit")


async def test_what_waits_for_a_stand_in_to_be_loaded_goes_home_to_who_is_back(
    serving, replicas, monkeypatch
):
    monkeypatch.setattr(routing, "STAND_IN_AFTER_S", 0.0)
    replicas["two"].state = "starting"
    service = await serving("one", "two", lazy=["two"])
    down(replicas["one"])
    await service.submit(request(profile="one"), STORED)
    await until(lambda: service.status.profiles[1].state == "starting")

    back(replicas["one"])

    await replicas["one"].given("a")
    assert replicas["two"].requests == {}


async def test_what_waits_for_a_stand_in_that_cannot_be_loaded_waits_for_its_own(
    serving, replicas, store, monkeypatch
):
    monkeypatch.setattr(routing, "STAND_IN_AFTER_S", 0.0)
    replicas["two"].state, replicas["two"].reason = "failed", "no such file"
    service = await serving("one", "two", lazy=["two"])
    down(replicas["one"])
    await service.submit(request(profile="one"), STORED)
    await until(lambda: service.status.profiles[1].state == "failed")
    await asyncio.sleep(0.05)
    assert store.get("a").state == JobState.QUEUED

    back(replicas["one"])

    await replicas["one"].given("a")


class Fleeting:
    """The feed of somebody who waits on a connection."""

    is_fleeting = True

    def __init__(self, name):
        self.request, self.heard = request(name), []

    def publish(self, news):
        self.heard.append(news)


async def test_who_waits_for_a_profile_that_is_back_meanwhile_is_not_turned_away(
    replicas, monkeypatch
):
    monkeypatch.setattr(stranded, "LOOK_S", 0.0)
    one = OnDemand(Profile(name="one", model="fake"), lambda: replicas["one"])
    replicas["one"].state, replicas["one"].reason = "failed", "no such file"
    feeds, cancelled = [Fleeting("a"), Fleeting("b")], []

    class Store:
        def cancel(self, job_id):
            cancelled.append(job_id)
            back(replicas["one"])

    class Clerk:
        async def do(self, call, *args):
            call(*args)

    looking = asyncio.create_task(
        stranded.Stranded(
            Router([one]), Store(), Clerk(), strays=lambda: feeds, why_not=lambda: ""
        ).look_at_connections()
    )
    await until(lambda: feeds[0].heard)
    await asyncio.sleep(0.01)
    looking.cancel()

    assert feeds[0].heard == [Failed("a", "overloaded", "not ready: no such file")]
    assert (cancelled, feeds[1].heard) == (["a"], [])


# ---- profiles that are not served any more


async def gone(serving, replicas, store):
    """A job that failed with profile two, whose server is gone; the next has no such profile."""
    first = await serving("one", "two")
    await first.submit(request(profile="two"), STORED)
    (await replicas["two"].given("a"))(EngineError("it broke"))
    assert (await finished(store, "a")).state == JobState.FAILED
    await vanished(first)
    return await serving("one")


async def test_a_retried_job_of_a_profile_that_is_gone_is_drawn_by_its_heir(
    serving, replicas, store, database
):
    service = await gone(serving, replicas, store)
    if database.is_shared:
        return  # another server may have it: as below
    await service.retry("a")

    await drawn(replicas["one"], "a")
    assert (await finished(store, "a")).state == JobState.DONE


@pytest.fixture
def shared(monkeypatch):
    """A database that other servers may use, of whatever kind it is; who waits is looked at."""
    monkeypatch.setattr(JobStore, "is_shared", True)
    monkeypatch.setattr(stranded, "QUEUE_LOOK_S", 0.01)
    monkeypatch.setattr(stranded, "UNSERVED_S", 0.3)


async def test_where_several_share_a_queue_what_no_server_has_fails_after_some_time(
    shared, serving, replicas, store
):
    service = await gone(serving, replicas, store)
    await service.retry("a")
    waiting = store.get("a")
    ticket = await service.follow(waiting)

    row = await finished(store, "a")

    assert (waiting.state, row.state, row.error_code) == ("queued", "failed", "model_not_found")
    assert "profile two is served by no server" in row.error_message
    [*_, end] = [event async for event in ticket]
    assert end.message == row.error_message


async def test_what_another_server_draws_for_is_not_given_up(shared, serving, replicas, store):
    other = await serving("two", holder="other", window=1)
    for name in "ab":
        await other.submit(request(name, profile="two"), STORED)
    await replicas["two"].given("a")
    await serving("one", holder="here")
    await asyncio.sleep(0.6)  # far beyond the bound
    assert store.get("b").state == JobState.QUEUED

    replicas["two"].publish["a"](Done("a"))

    await replicas["two"].given("b")


async def test_what_no_server_has_is_not_waited_for_beyond_its_deadline(
    shared, serving, replicas, store, monkeypatch
):
    monkeypatch.setattr(stranded, "UNSERVED_S", 600.0)
    first = await serving("one", "two", window=0)
    terms = Terms(is_attended=False, deadline_s=0.05)
    await first.submit(request(profile="two"), terms)
    await vanished(first)
    await serving("one")

    row = await finished(store, "a")
    assert (row.state, row.error_code) == (JobState.FAILED, "deadline_exceeded")


# ---- pictures of those who wait


@pytest.mark.parametrize("terms", [STORED, Terms()], ids=["stored", "waited for"])
async def test_pictures_of_those_who_wait_are_not_held_in_memory(terms, serving, replicas):
    service = await serving("one", window=0)
    tracemalloc.start()
    try:
        tickets = []
        for k in range(8):
            given = {"source": bytes([k]) * 4 * MIB, "references": (bytes([k]) * MIB,)}
            tickets.append(await service.submit(request(f"j{k}", **given), terms))
        del given
        await service.counts()  # the clerk has let go of the last
        gc.collect()  # what a transaction leaves behind
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert held < 2 * 5 * MIB  # of 40; the driver may remember the last


async def test_a_job_is_drawn_from_its_pictures_and_again_after_a_failure(serving, replicas, store):
    files = {"source": b"canvas", "mask": b"mask", "references": (b"one", b"two")}
    service = await serving("one")
    ticket = await service.submit(request(**files))
    first = await replicas["one"].given("a")
    asked = replicas["one"].requests.pop("a")
    assert {name: getattr(asked, name) for name in files} == files
    del replicas["one"].publish["a"]
    first(EngineError("it broke"))
    assert (await finished(store, "a")).state == JobState.FAILED

    await service.retry("a")

    await replicas["one"].given("a")
    again = replicas["one"].requests["a"]
    assert {name: getattr(again, name) for name in files} == files
    await drawn(replicas["one"], "a")
    await finished(store, "a")
    assert store.source("a") is None
    await ticket.__aexit__(None, None, None)
