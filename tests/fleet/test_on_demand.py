"""A lazy profile is loaded by who asks, once for all who do, and leaves when nobody does."""

import asyncio

import pytest

from fluxline.errors import InvalidParams, NotReady
from fluxline.request import CancelledEvent, Done, Failed
from tests.fleet.conftest import asked, until


async def test_an_eager_profile_is_what_its_replica_is(made):
    one = made.profile("a")
    one.start()
    with pytest.raises(NotReady):
        one.submit(asked(), lambda news: None)

    made.replicas["a"][0].turn("ready")

    assert (await one.settled(), one.ready, one.idle_since) == ("ready", 1, None)
    await one.unload()
    assert (one.state, made.replicas["a"][0].stops) == ("ready", 0)


async def test_a_lazy_profile_is_not_there_before_somebody_asks(made):
    one = made.profile("a", load="lazy", replicas=2)
    one.start()

    assert (one.state, one.ready, one.loaded, one.models) == ("unloaded", 2, 0, ())
    assert made.replicas == {}


async def test_who_asks_while_it_is_loaded_shares_the_load(made):
    one = made.profile("a", load="lazy")
    news = {name: [] for name in "xyz"}
    one.submit(asked("x"), news["x"].append)
    one.submit(asked("y"), news["y"].append)
    await until(lambda: "a" in made.replicas)
    one.load()
    one.submit(asked("z"), news["z"].append)
    await made.loaded(one)
    [replica] = made.replicas["a"]
    await until(lambda: len(replica.held) == 3)

    assert list(replica.held) == ["x", "y", "z"]
    for name, publish in list(replica.held.items()):
        publish(Done(name))
    assert news == {name: [Done(name)] for name in "xyz"}


async def test_who_leaves_before_it_is_loaded_is_not_drawn(made):
    one, news = made.profile("a", load="lazy"), []
    one.submit(asked("x"), news.append)
    await until(lambda: "a" in made.replicas)
    one.cancel("x")
    one.cancel("nobody")
    await made.loaded(one)
    await asyncio.sleep(0)

    assert news == [CancelledEvent("x")]
    assert made.replicas["a"][0].held == {}


async def test_what_nobody_waits_for_any_more_before_it_begins_is_not_loaded(made):
    one, news = made.profile("a", load="lazy"), []
    one.submit(asked("x"), news.append)
    one.cancel("x")
    await asyncio.sleep(0.01)
    assert (one.state, made.replicas) == ("unloaded", {})

    one.submit(asked("y"), news.append)
    await made.loaded(one)
    assert list(made.replicas["a"][0].held) == ["y"]


async def test_one_that_cannot_be_loaded_says_so_until_it_is_told_to_try_again(made):
    one, news = made.profile("a", load="lazy"), []
    one.submit(asked(), news.append)
    await until(lambda: "a" in made.replicas)
    made.replicas["a"][0].turn("failed")
    await one.ended()
    await until(lambda: news)

    assert news == [Failed("r", "overloaded", "it is failed")]
    assert (one.state, one.held_bytes) == ("failed", 0)
    with pytest.raises(NotReady):
        one.submit(asked("again"), news.append)
    one.load()
    await until(lambda: len(made.replicas["a"]) == 2)
    made.replicas["a"][1].turn("ready")
    assert await one.settled() == "ready"


async def test_one_that_is_idle_for_long_ends_its_processes(made):
    one = made.profile("a", load="lazy", idle_unload_s=0.05)
    one.submit(asked(), lambda news: None)
    await made.loaded(one)
    [replica] = made.replicas["a"]
    await asyncio.sleep(0.1)
    assert one.state == "ready"  # it has work

    replica.held.pop("r")(Done("r"))
    await until(lambda: one.state == "unloaded" and not one.held_bytes)

    assert (replica.stops, one.held_bytes, one.models != ()) == (1, 0, True)


async def test_loaded_for_nobody_it_leaves_as_well(made):
    one = made.profile("a", load="lazy", idle_unload_s=0.05)
    one.load()
    await made.loaded(one)

    await until(lambda: one.state == "unloaded")


async def test_who_asks_while_it_leaves_has_it_loaded_again(made):
    one, news = made.profile("a", load="lazy"), []
    one.load()
    await made.loaded(one)
    leaving = made.replicas["a"][0]
    leaving.may_end.clear()
    unloading = asyncio.create_task(one.unload())
    await until(lambda: leaving.stops)
    one.submit(asked(), news.append)
    await asyncio.sleep(0.01)
    assert len(made.replicas["a"]) == 1  # not while the memory of the first is held

    leaving.may_end.set()
    await unloading
    await until(lambda: len(made.replicas["a"]) == 2)
    await made.loaded(one)
    await until(lambda: made.replicas["a"][1].held)


async def test_one_that_draws_is_not_unloaded(made):
    one = made.profile("a", load="lazy")
    one.submit(asked(), lambda news: None)
    await made.loaded(one)
    await until(lambda: made.replicas["a"][0].held)

    await one.unload()

    assert (one.state, made.replicas["a"][0].stops) == ("ready", 0)


async def test_a_refusal_is_the_callers_and_leaves_no_work_behind(made):
    one, news = made.profile("a", load="lazy"), []
    one.submit(asked(), news.append)
    await made.loaded(one)
    error = InvalidParams("width is wrong", field="width")
    made.replicas["a"][0].held["r"](error)

    assert news == [error]
    assert one.idle_since is not None


async def test_stopping_ends_what_waits_for_a_load(made):
    one, news = made.profile("a", load="lazy"), []
    one.submit(asked(), news.append)
    await until(lambda: "a" in made.replicas)

    await one.stop()

    assert [type(event) for event in news] == [Failed]
    assert (one.state, made.replicas["a"][0].stops) == ("stopped", 1)
    await one.ended()


# ---- memory


async def test_what_was_used_longest_ago_makes_room(cramped):
    profiles = [cramped.profile(name, load="lazy", needs_gb=2) for name in "abc"]
    a, b, c = profiles
    for one in (a, b):
        one.load()
        await cramped.loaded(one)
    a.submit(asked(), lambda news: None)
    cramped.replicas["a"][0].held.pop("r")(Done("r"))  # a was used after b

    c.load()
    await cramped.loaded(c)

    assert [one.state for one in profiles] == ["ready", "unloaded", "ready"]
    assert sum(one.held_bytes for one in profiles) <= 4 * 2**30


async def test_one_that_finds_no_room_waits_until_another_has_done_its_work(cramped):
    a, b = (cramped.profile(name, load="lazy", needs_gb=3) for name in "ab")
    a.submit(asked(), lambda news: None)
    await cramped.loaded(a)
    await until(lambda: cramped.replicas["a"][0].held)
    b.load()
    await asyncio.sleep(0.02)
    assert (b.state, b.reason) == ("starting", "the model waits for memory")

    cramped.replicas["a"][0].held.pop("r")(Done("r"))
    await cramped.loaded(b)

    assert (a.state, b.state) == ("unloaded", "ready")


@pytest.fixture
async def pressing(cramped, monkeypatch):
    """One profile that draws, and one that has no room beside it and soon no patience."""
    monkeypatch.setattr("fluxline.fleet.budget.LONGEST_TURN_S", 0.02)
    a, b = (cramped.profile(name, load="lazy", needs_gb=3) for name in "ab")
    a.submit(asked(), lambda news: None)
    await cramped.loaded(a)
    await until(lambda: cramped.replicas["a"][0].held)
    return a, b


async def test_nobody_must_leave_for_a_profile_that_nobody_waits_for_any_more(pressing):
    a, b = pressing
    b.submit(asked("x"), lambda news: None)
    b.submit(asked("y"), lambda news: None)
    b.cancel("x")
    await until(lambda: a.ready == 0)  # y still waits

    b.cancel("y")
    await asyncio.sleep(0.05)

    assert (a.ready, a.state, b.state) == (1, "ready", "unloaded")


async def test_one_that_was_told_to_load_waits_for_memory_without_a_request(pressing):
    a, b = pressing
    b.submit(asked("x"), lambda news: None)
    b.load()
    b.cancel("x")

    await until(lambda: a.ready == 0)
    assert b.state == "starting"


async def test_what_was_measured_counts_when_it_is_more_than_was_said(cramped):
    a, b = (cramped.profile(name, load="lazy", needs_gb=1) for name in "ab")
    a.load()
    await cramped.loaded(a)  # its process says 2 GiB
    assert a.held_bytes == 2 * 2**30
    b.load()
    await cramped.loaded(b)
    assert (a.state, b.state) == ("ready", "ready")
    big = cramped.profile("c", load="lazy", needs_gb=1)
    big.load()
    await cramped.loaded(big)

    assert a.state == "unloaded"
