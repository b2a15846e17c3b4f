"""Two servers of one database: a job is drawn once, and its caller hears of it wherever it is."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest

from fluxline.jobs import JobState
from fluxline.request import Done, GenerationRequest, ImageReady, SamplingParams
from fluxline.service import Terms
from fluxline.service.record import request_of
from tests.service.conftest import (
    STORED,
    ScriptedReplica,
    drawn,
    finished,
    picture,
    request,
    until,
    vanished,
)

LARGEST_SEED = 2**63 - 1


@pytest.fixture
async def server(opened, monkeypatch):
    """Open servers that look for each other's news often. Their replicas come with them."""
    monkeypatch.setattr("fluxline.service.elsewhere.LOOK_S", 0.02)
    async with AsyncExitStack() as stack:

        async def make(name, **options):
            replica = ScriptedReplica()
            service = await opened(replica, holder=name, queue_limit=99, **options)
            stack.push_async_callback(service.close)
            stack.push_async_callback(replica.stop)
            return service, replica

        yield make


async def busy(server, name):
    """A server that has no room for anything."""
    service, replica = await server(name, window=1)
    await service.submit(request(f"{name}s own"), STORED)
    await replica.given(f"{name}s own")
    return service, replica


def is_idle(service):
    return service.status.waiting + service.status.running == 0


async def test_every_job_is_drawn_once_by_one_of_them(server, store):
    (one, mine), (other, its) = await server("one"), await server("other")
    names = [f"j{k}" for k in range(12)]
    for k, name in enumerate(names):
        await (one, other)[k % 2].submit(request(name), STORED)
    await until(lambda: len(mine.requests) + len(its.requests) == 12)
    assert not mine.requests.keys() & its.requests.keys()
    for replica in (mine, its):
        for name in replica.requests:
            await drawn(replica, name)
    assert [(await finished(store, name)).attempts for name in names] == [1] * 12


async def test_who_asked_here_hears_of_what_is_drawn_there(server):
    (asked, _), (_, draws) = await busy(server, "one"), await server("other")
    async with await asked.submit(request("a"), STORED) as ticket:
        await drawn(draws, "a")
        heard = [event async for event in ticket]
    assert [type(event).__name__ for event in heard] == ["Queued", "ImageReady", "Done"]
    assert heard[1].image.data == picture("a", 0).image.data


async def test_who_waits_with_a_key_gets_the_pictures_from_wherever(server):
    (asked, _), (other, draws) = await busy(server, "one"), await server("other")
    keyed = Terms(idempotency_key="k", fingerprint="f")
    waiting = asyncio.create_task(asked.draw(request("a"), keyed))
    await draws.given("a")
    again = asyncio.create_task(other.draw(request("b"), keyed))
    await until(lambda: other._register.get("a").followers)
    await drawn(draws, "a")
    assert [image.data for image in (await waiting).images] == [picture("a", 0).image.data]
    assert await again == await waiting
    assert "b" not in draws.requests


async def test_who_waits_without_a_key_is_drawn_for_where_they_are(server, pictures):
    (asked, mine), (_, other) = await busy(server, "one"), await server("other")
    waiting = asyncio.create_task(asked.draw(request("a")))
    await asyncio.sleep(0.1)
    assert other.requests == {}
    await drawn(mine, "ones own")
    await drawn(mine, "a")
    assert (await waiting).images[0].stored is None


async def test_cancelling_here_ends_what_is_drawn_there(server, store, monkeypatch):
    monkeypatch.setattr("fluxline.service.dispatcher.LEASE_S", 0.3)
    (asked, _), (_, draws) = await busy(server, "one"), await server("other")
    ticket = await asked.submit(request("a"), STORED)
    await draws.given("a")
    await asked.cancel("a")
    async with ticket:
        heard = [type(event).__name__ async for event in ticket]
    assert (draws.cancelled, heard[-1]) == (["a"], "CancelledEvent")


async def test_what_a_dead_server_held_is_drawn_by_the_other_when_its_lease_is_over(
    server, store, monkeypatch
):
    monkeypatch.setattr("fluxline.service.dispatcher.LEASE_S", 0.3)
    monkeypatch.setattr("fluxline.jobs.store.FIRST_LEASE_S", 0.3)
    dead, held = await server("dead", window=1)
    await dead.submit(request("stored"), STORED)
    await dead.submit(GenerationRequest(id="awaited", prompt="a fox", seed=2))
    await held.given("stored")
    await vanished(dead)
    _, living = await server("living")
    await drawn(living, "stored")
    row, left = await finished(store, "stored"), await finished(store, "awaited")
    assert (row.state, row.attempts, row.holder) == (JobState.DONE, 2, "living")
    assert (left.state, list(living.requests)) == (JobState.CANCELLED, ["stored"])
    assert living.requests["stored"].seed == held.requests["stored"].seed


async def test_what_another_drew_counts_in_its_books_alone(server):
    (asked, _), (other, draws) = await busy(server, "one"), await server("other")
    await asked.submit(request("a"), STORED)
    assert asked.status.waiting == 2
    await drawn(draws, "a")
    await until(lambda: asked.status.waiting < 2 and is_idle(other))
    counted = 'fluxline_images_total{backend="native",model="fake"} 1.0'
    assert counted in other.meter.text().decode()
    assert counted not in asked.meter.text().decode()


async def test_a_late_starter_keeps_no_place_for_what_others_draw(server):
    one, draws = await busy(server, "one")
    await one.submit(request("a"), STORED)
    late, replica = await server("late", window=1)
    await drawn(replica, "a")
    await drawn(draws, "ones own")
    await until(lambda: is_idle(late))
    assert list(replica.requests) == ["a"]


async def test_the_largest_seed_comes_back_whole(server, store):
    service, replica = await server("one")
    work = GenerationRequest(id="a", prompt="a fox", seed=LARGEST_SEED)
    await service.submit(work, STORED)
    await replica.given("a")
    assert replica.requests["a"].seed == LARGEST_SEED
    assert request_of(store.get("a")) == replace(
        work, profile="fake", params=SamplingParams(loras=())
    )


async def test_who_follows_here_what_was_asked_and_is_drawn_there_hears_its_end(server, store):
    (follows, _), (asked, draws) = await busy(server, "one"), await server("other")
    await asked.submit(request("a"), STORED)
    await draws.given("a")
    one, two = [await follows.follow(store.get("a")) for _ in range(2)]
    await drawn(draws, "a")
    for ticket in (one, two):
        assert [type(event) async for event in ticket] == [ImageReady, Done]
