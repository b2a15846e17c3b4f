"""Profiles that share 4 GiB: who comes next, who must go, and who never will fit."""

import asyncio

import pytest

from fluxline.ability import EngineStats
from fluxline.errors import NotReady
from fluxline.fleet import budget
from fluxline.profiles import GIB
from fluxline.request import Done, Failed
from tests.fleet.conftest import asked, until


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(budget, "LONGEST_TURN_S", 0.02)


async def eager(made, name, gib):
    """An eager profile that is ready and turned out to take so much."""
    one = made.profile(name, needs_gb=1)
    one.start()
    made.replicas[name][0].stats = (EngineStats(process_bytes=gib * GIB),)
    made.replicas[name][0].turn("ready")
    return one


async def busy(made, name, **fields):
    """A lazy profile that is loaded and draws."""
    one = made.profile(name, load="lazy", **fields)
    one.submit(asked(name), [].append)
    await made.loaded(one)
    await until(lambda: name in made.replicas[name][-1].held)
    return one


def done(made, name):
    made.replicas[name][-1].held.pop(name)(Done(name))


async def test_who_never_fits_beside_what_stays_is_refused_and_holds_up_nobody(cramped):
    await eager(cramped, "stays", 3)  # it said 1
    big = cramped.profile("big", load="lazy", needs_gb=2)
    small = cramped.profile("small", load="lazy", needs_gb=1)

    big.load()
    small.load()
    await cramped.loaded(small)

    why = "profile big needs 2.0 GiB of the 4 that memory_gb allows, and stays stays loaded with"
    assert (big.state, big.reason) == ("failed", f"{why} 3.0")
    with pytest.raises(NotReady, match=why):
        big.submit(asked(), [].append)


async def test_who_did_not_fit_is_loaded_when_what_stayed_has_failed(cramped):
    await eager(cramped, "stays", 3)
    big = cramped.profile("big", load="lazy", needs_gb=2)
    assert big.state == "failed"

    cramped.replicas["stays"][0].turn("failed")

    assert big.state == "unloaded"
    big.load()
    await cramped.loaded(big)


async def test_who_waits_hears_of_it_when_what_stays_grows(cramped, impatient):
    stays = await eager(cramped, "stays", 1)
    await busy(cramped, "a", needs_gb=2)
    waits, news = cramped.profile("b", load="lazy", needs_gb=2), []
    waits.submit(asked(), news.append)
    await asyncio.sleep(0.01)
    assert not news

    cramped.replicas["stays"][0].stats = (EngineStats(process_bytes=3 * GIB),)

    await until(lambda: news)
    [failed] = news
    assert (stays.held_bytes, type(failed)) == (3 * GIB, Failed)
    assert "stays stays loaded with 3.0" in failed.message


async def test_who_fits_passes_by_who_waits(cramped):
    await busy(cramped, "a", needs_gb=2)
    big, small = (cramped.profile(n, load="lazy", needs_gb=g) for n, g in (("big", 3), ("s", 1)))
    big.load()
    await asyncio.sleep(0.01)
    small.load()
    await cramped.loaded(small)

    assert (big.state, big.reason) == ("starting", "the model waits for memory")


async def test_nobody_passes_by_who_has_waited_for_long(cramped, impatient):
    await busy(cramped, "a", needs_gb=2)
    big, small = (cramped.profile(n, load="lazy", needs_gb=g) for n, g in (("big", 3), ("s", 1)))
    big.load()
    await asyncio.sleep(0.05)
    small.load()
    await asyncio.sleep(0.05)
    assert "s" not in cramped.replicas

    done(cramped, "a")
    await cramped.loaded(big)
    await cramped.loaded(small)
    assert list(cramped.replicas) == ["a", "big", "s"]


async def test_they_come_in_the_order_they_asked(cramped):
    await busy(cramped, "a", needs_gb=4)
    b, c = (cramped.profile(name, load="lazy", needs_gb=3) for name in "bc")
    b.load()
    await asyncio.sleep(0)
    c.load()
    await asyncio.sleep(0.01)

    done(cramped, "a")
    await cramped.loaded(b)
    await cramped.loaded(c)

    assert list(cramped.replicas) == ["a", "b", "c"]
    assert (b.state, c.state) == ("unloaded", "ready")


async def test_who_always_has_work_gives_way_to_who_has_waited_for_long(cramped, impatient):
    one = await busy(cramped, "a", needs_gb=2)
    other = await busy(cramped, "b", needs_gb=2)
    waits = cramped.profile("c", load="lazy", needs_gb=2)
    waits.load()
    assert (one.ready, other.ready) == (1, 1)

    await until(lambda: one.ready == 0)

    assert other.ready == 1  # one is enough
    done(cramped, "a")  # of what it has begun nothing is lost
    await cramped.loaded(waits)
    assert (one.state, one.ready, other.state) == ("unloaded", 1, "ready")


async def test_what_frees_too_little_is_not_unloaded(cramped):
    idle = cramped.profile("a", load="lazy", needs_gb=1)
    idle.load()
    await cramped.loaded(idle)  # its process says 2 GiB
    await busy(cramped, "b", needs_gb=2)
    cramped.profile("c", load="lazy", needs_gb=3).load()
    await asyncio.sleep(0.02)

    assert idle.state == "ready"


async def test_who_waits_looks_again_when_one_fails_that_had_no_work(cramped):
    await eager(cramped, "stays", 1)
    await busy(cramped, "a", needs_gb=2)
    waits = cramped.profile("b", load="lazy", needs_gb=2)
    waits.load()
    await asyncio.sleep(0.02)
    assert waits.reason == "the model waits for memory"

    cramped.replicas["stays"][0].turn("failed")

    await cramped.loaded(waits)


async def test_who_gives_up_leaves_the_line(cramped):
    await busy(cramped, "a", needs_gb=3)
    gone, next_one = (cramped.profile(name, load="lazy", needs_gb=3) for name in "bc")
    gone.load()
    await asyncio.sleep(0)
    next_one.load()
    await asyncio.sleep(0.01)
    await gone.stop()

    done(cramped, "a")

    await cramped.loaded(next_one)
