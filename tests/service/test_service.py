"""The life of a request, over a replica whose every word the test speaks."""

import asyncio
from dataclasses import replace

import pytest

from fluxline.errors import (
    Cancelled,
    InvalidParams,
    NotReady,
    OutOfMemory,
    QueueFull,
    UnknownModel,
    WorkerDied,
)
from fluxline.request import CancelledEvent, Done, Failed, Queued, Started
from fluxline.service import Wish
from fluxline.service.pace import Pace
from tests.service.conftest import picture, request, until
from tests.worker.fake_engine import INFO


async def begun(service, replica, work):
    """Start drawing in the background, once the replica has the request."""
    task = asyncio.create_task(service.draw(work))
    await replica.given(work.id)
    return task


async def test_pictures_come_back_in_order(service, replica):
    task = await begun(service, replica, request(n=2))

    for event in (Queued("a"), Started("a"), picture("a", 1), picture("a", 0), Done("a")):
        replica.publish["a"](event)

    assert [image.index for image in (await task).images] == [0, 1]
    assert (service.status.waiting, service.status.running) == (0, 0)


@pytest.mark.parametrize(
    ("news", "kind"),
    [
        (Failed("a", "out_of_memory", "no"), OutOfMemory),
        (Failed("a", "worker_died", "no"), WorkerDied),
        (CancelledEvent("a"), Cancelled),
        (InvalidParams("no", field="steps"), InvalidParams),
    ],
    ids=["memory", "death", "cancel", "refusal"],
)
async def test_what_went_wrong_is_raised_as_what_it_was(news, kind, service, replica):
    task = await begun(service, replica, request())

    replica.publish["a"](news)

    with pytest.raises(kind):
        await task
    assert service.status.waiting == 0


async def test_leaving_early_cancels_and_leaving_late_does_not(service, replica):
    early = await begun(service, replica, request("early"))
    early.cancel()
    await asyncio.gather(early, return_exceptions=True)
    late = await begun(service, replica, request("late"))
    replica.publish["late"](Done("late"))
    await late

    assert replica.cancelled == ["early"]


async def test_a_ticket_yields_every_event_and_ends(service, replica):
    said = [Started("a"), picture("a", 0), Done("a")]
    async with await service.submit(request()) as ticket:
        publish = await replica.given("a")
        for event in said:
            publish(event)
        heard = [event async for event in ticket]

    queued, started, ready, done = heard
    assert [queued, started, done] == [Queued("a"), Started("a"), Done("a")]
    assert ready.image == replace(said[1].image, profile="fake")
    assert replica.cancelled == []


async def test_only_waiting_requests_count_against_the_limit(service, replica):
    tickets = [await service.submit(request(name)) for name in "ab"]
    with pytest.raises(QueueFull, match="at most 2") as refused:
        await service.submit(request("c"))
    (await replica.given("a"))(Started("a"))
    await until(lambda: service.status.running)

    tickets.append(await service.submit(request("c")))

    assert 1 <= refused.value.retry_after_s <= 120
    assert (service.status.waiting, service.status.running) == (2, 1)


async def test_nothing_is_admitted_before_the_model_is_loaded(service, replica):
    replica.state, replica.reason, replica.models = "starting", "the model is loading", ()

    with pytest.raises(NotReady, match="the model is loading"):
        await service.submit(request())
    with pytest.raises(NotReady):
        await service.roster.opened("fake")


async def test_a_request_waits_while_the_model_is_loaded(service, replica, monkeypatch):
    loaded = asyncio.Event()

    async def settled():
        await loaded.wait()
        return "ready"

    monkeypatch.setattr(replica, "settled", settled)
    replica.state, replica.models = "restarting", ()
    opened = service.roster.opened
    first, second = (asyncio.create_task(opened("fake")) for _ in range(2))
    await asyncio.sleep(0)
    with pytest.raises(QueueFull, match="at most 2"):
        await opened("fake")
    assert not first.done()

    loaded.set()
    replica.state, replica.models = "ready", (INFO,)
    assert await asyncio.gather(first, second) == [INFO, INFO]
    replica.state, replica.models = "restarting", ()
    monkeypatch.setattr("fluxline.service.roster.LONGEST_OPENING_S", 0.01)
    loaded.clear()
    with pytest.raises(NotReady):
        await opened("fake")


@pytest.mark.parametrize("name", [None, "", "fake", "default", "dall-e-3", "other"])
def test_a_model_goes_by_its_name_its_aliases_and_none(name, service):
    assert service.roster.standing(Wish(model=name)).info is INFO


async def test_an_unknown_model_is_refused_and_the_known_are_named(service):
    with pytest.raises(UnknownModel, match=r"'who'.*fake"):
        await service.submit(request(model="who"))


async def test_draining_admits_nothing_and_waits_for_the_last(service, replica):
    task = await begun(service, replica, request())
    draining = asyncio.create_task(service.drain(10))
    await asyncio.sleep(0)

    with pytest.raises(NotReady, match="shutting down"):
        await service.submit(request("b"))
    assert not draining.done()
    replica.publish["a"](Done("a"))
    await asyncio.gather(draining, task)


async def test_draining_has_a_limit(service, replica):
    await begun(service, replica, request())

    async with asyncio.timeout(20):
        await service.drain(0.01)

    assert service.status.waiting == 1  # left to whoever stops the replica


def test_the_guess_grows_with_the_pace_and_stays_in_bounds():
    now = 100.0
    pace = Pace(lambda: now)
    assert pace.retry_s(1) == 1

    pace.begin(1)
    now += 7.5
    pace.picture(1.0)

    assert [pace.retry_s(n) for n in (1, 2, 100)] == [8, 15, 120]
    assert pace.seconds(2) == 15
