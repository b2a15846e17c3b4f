"""What a wake reads of the queue, and whom it gives what it finds. Every wake is the test's own."""

from dataclasses import replace

import pytest

from fluxline.fleet.on_demand import OnDemand
from fluxline.fleet.router import Router
from fluxline.jobs import JobState, JobStore, Limits
from fluxline.profiles import Profile
from fluxline.service import Caller, Service, Terms, dispatcher, record
from tests.service.conftest import ScriptedReplica, drawn, finished, request, until

LOOKED_AT = 5


class CountingStore(JobStore):
    """Counts the rows that are read of those who wait for a profile that is down."""

    read = 0

    def waiting(self, *words, **more):
        rows = super().waiting(*words, **more)
        self.read += len(rows)
        return rows


@pytest.fixture
def store(database):
    return CountingStore(database)


@pytest.fixture
def replicas():
    """Of one, which is down, of two, which stands in for it, and of three, which is by itself."""
    replicas = {name: ScriptedReplica() for name in ("one", "two", "three")}
    replicas["one"].state = "restarting"
    return replicas


@pytest.fixture
async def asleep(replicas, store, pictures, monkeypatch):
    """A dispatcher that nobody wakes but the test; two jobs at a time for each replica."""
    monkeypatch.setattr(dispatcher, "LOOKED_AT", LOOKED_AT)
    fallbacks = {"one": "two"}
    members = [
        OnDemand(
            Profile(name=name, model="fake", fallback=fallbacks.get(name, "")),
            lambda name=name: replicas[name],
        )
        for name in replicas
    ]
    service = Service(Router(members), store, pictures, queue_limit=99, window=2)
    yield service._dispatcher
    for replica in replicas.values():
        await replica.stop()
    await service.close()


@pytest.fixture
def queued(store):
    """Accept jobs of a profile, the first first."""

    def accept(*names, profile, owner="", **fields):
        for name in names:
            asked = request(name, profile=profile, **fields)
            terms, caller = Terms(is_attended=False), Caller(owner=owner)
            new = record.new_job(asked, terms, caller, cost=1.0, holder="local")
            store.accept(new, Limits(waiting=99))

    return accept


def many(letter, count=20):
    return [f"{letter}{k:02}" for k in range(count)]


async def test_what_waits_for_a_profile_that_nobody_stands_in_for_is_not_read(
    asleep, queued, replicas, store
):
    replicas["three"].state = "failed"
    queued(*many("a"), profile="three")
    queued("b", profile="two")

    await asleep._claim()

    assert store.read == 0
    await drawn(replicas["two"], "b")
    assert (await finished(store, "b")).state == JobState.DONE


async def test_of_a_long_queue_a_wake_reads_only_the_first(asleep, queued, replicas, store):
    replicas["one"].models = (replace(replicas["one"].models[0], references=1),)
    queued(*many("a"), profile="one", references=(b"x",))  # two draws none of these

    await asleep._claim()
    assert store.read == LOOKED_AT
    await asleep._claim()

    assert store.read == 2 * LOOKED_AT
    assert replicas["two"].requests == {}


async def test_what_waits_is_not_read_while_its_stand_ins_have_no_room(
    asleep, queued, replicas, store
):
    queued(*many("a"), profile="one")
    queued(*many("b"), profile="three")
    await asleep._claim()
    read = store.read
    await asleep._claim()
    assert store.read == read

    await drawn(replicas["two"], "a00")
    await until(lambda: not asleep.holds("a00"))
    await asleep._claim()

    assert store.read == read + LOOKED_AT
    await replicas["two"].given("a02")


async def test_a_long_queue_is_drawn_to_its_end_with_owners_in_turn(
    asleep, queued, replicas, store
):
    queued(*many("a", 8), profile="one", owner="ann")
    queued(*many("b", 3), profile="one", owner="bob")

    while store.counts().get(JobState.QUEUED):
        await asleep._claim()
        for row in store.recent(states=[JobState.RUNNING]):
            await drawn(replicas["two"], row.id)
        await asleep.drained()

    in_turn = ["a00", "b00", "a01", "b01", "a02", "b02", *many("a", 8)[3:]]
    assert list(replicas["two"].requests) == in_turn


async def test_what_is_stood_in_for_comes_by_priority_among_the_stand_ins_own(
    asleep, queued, replicas
):
    queued("own", profile="two", priority=5)
    queued("later", profile="one", priority=1)
    queued("sooner", profile="one", priority=9)

    await asleep._claim()

    await replicas["two"].given("own")
    assert list(replicas["two"].requests) == ["sooner", "own"]
