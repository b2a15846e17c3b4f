"""Who draws a request: by what it names, by what is preferred, and in whose place."""

import asyncio

import pytest

from fluxline.errors import InvalidParams, UnknownModel
from fluxline.fleet.router import Router
from fluxline.request import Done, ImageReady
from tests.fleet.conftest import asked
from tests.service.conftest import picture


@pytest.fixture
async def router(made):
    """fp4 and bf16 of one model, either standing in for the other, and a model by itself."""
    profiles = [
        made.profile("fp4", model="hub/dev", fallback="bf16", from_priority=5),
        made.profile("bf16", model="hub/dev", fallback="fp4"),
        made.profile("small"),
    ]
    for one in profiles:
        one.start()
        made.replicas[one.name][0].turn("ready")
    return Router(profiles)


@pytest.mark.parametrize(
    ("wish", "name"),
    [
        ({}, "fp4"),
        ({"profile": "bf16"}, "bf16"),
        ({"model": "hub/dev"}, "fp4"),
        ({"model": "dev"}, "fp4"),
        ({"model": "bf16"}, "bf16"),
        ({"model": "mini"}, "small"),
        ({"model": "dev", "profile": "bf16"}, "bf16"),
        ({"preferred": ["bf16"]}, "bf16"),
        ({"preferred": ["gone", "bf16"]}, "bf16"),
        ({"model": "mini", "preferred": ["bf16"]}, "small"),
        ({"profile": "small", "preferred": ["bf16"], "priority": 9}, "small"),
        ({"preferred": ["bf16"], "priority": 5}, "bf16"),
    ],
)
async def test_the_most_explicit_word_decides(wish, name, router):
    assert router.choose(**wish).name == name


async def test_priority_decides_where_nothing_else_does(made):
    router = Router([made.profile("slow"), made.profile("fast", from_priority=5)])

    assert router.choose(priority=4).name == "slow"
    assert router.choose(priority=5).name == "fast"


@pytest.mark.parametrize(
    ("wish", "kind", "words"),
    [
        ({"model": "who"}, UnknownModel, "'who' is not served.*fp4, dev, .*bf16"),
        ({"profile": "who"}, InvalidParams, "'who' is not served.*fp4, bf16, small"),
        ({"profile": "small", "model": "dev"}, InvalidParams, "small serves mini, not dev"),
    ],
)
async def test_what_is_not_there_is_refused_by_name(wish, kind, words, router):
    with pytest.raises(kind, match=words):
        router.choose(**wish)


@pytest.mark.parametrize("state", ["restarting", "failed"])
async def test_another_stands_in_for_one_that_is_down_and_its_pictures_say_so(state, router, made):
    made.replicas["fp4"][0].turn(state)
    news = []
    router.submit(asked(profile="fp4"), news.append)
    publish = made.replicas["bf16"][0].held["r"]
    publish(picture("r", 0))
    publish(Done("r"))

    ready, done = news
    assert isinstance(ready, ImageReady)
    assert (ready.image.profile, done) == ("bf16", Done("r"))
    assert ready.image.warnings == ("profile fp4 is down: drawn with bf16",)


async def test_a_picture_of_its_own_profile_says_nothing(router, made):
    news = []
    router.submit(asked(profile="fp4"), news.append)
    made.replicas["fp4"][0].held["r"](picture("r", 0))

    assert (news[0].image.profile, news[0].image.warnings) == ("fp4", ())


async def test_with_both_down_nobody_stands_in(router, made):
    for name in ("fp4", "bf16"):
        made.replicas[name][0].turn("restarting")

    one, note = router.standing(asked(profile="fp4"))

    assert (one.name, note) == ("fp4", "")


async def test_work_is_taken_for_those_who_are_down(router, made):
    made.replicas["bf16"][0].turn("failed")

    assert {one.name: names for one, names in router.takers()} == {
        "fp4": ["fp4", "bf16"],
        "small": ["small"],
    }


async def test_work_of_a_profile_that_is_gone_goes_to_the_first_and_says_so(router):
    one, note = router.standing(asked(profile="gone"))

    assert (one.name, note) == ("fp4", "profile gone is not served any more: drawn with fp4")


async def test_a_server_is_ready_while_anybody_can_draw_or_be_loaded(made):
    eager, lazy = made.profile("eager"), made.profile("lazy", load="lazy")
    eager.start()
    assert Router([eager]).state == "starting"
    assert Router([eager, lazy]).state == "ready"
    made.replicas["eager"][0].turn("failed")
    assert (Router([eager]).state, Router([eager]).reason) == ("failed", "it is failed")
    assert (Router([eager, lazy]).state, Router([eager, lazy]).reason) == ("ready", "")


async def test_it_ends_when_the_last_profile_has_failed(router, made):
    ended = asyncio.create_task(router.ended())
    for name in ("fp4", "bf16", "small"):
        await asyncio.sleep(0.01)
        assert not ended.done()
        made.replicas[name][0].turn("failed")
    async with asyncio.timeout(10):
        await ended


async def test_stopping_stops_all(router, made):
    await router.stop()

    assert all(replicas[0].stops == 1 for replicas in made.replicas.values())
    assert router.state == "stopped"


async def test_cancelling_finds_who_draws_it(router, made):
    router.submit(asked(profile="bf16"), lambda news: None)
    router.cancel("r")

    assert made.replicas["bf16"][0].held == {}


async def test_who_stands_in_is_not_told_the_model_of_whom_it_stands_for(made):
    one = made.profile("one", model="hub/dev", fallback="two")
    two = made.profile("two", model="hub/schnell")
    for profile, state in ((one, "failed"), (two, "ready")):
        profile.start()
        made.replicas[profile.name][0].turn(state)
    Router([one, two]).submit(asked(profile="one", model="dev"), [].append)
    assert made.replicas["two"][0].given["r"].model is None


async def test_a_profile_that_is_gone_is_stood_in_for_as_the_first_is(router, made):
    made.replicas["fp4"][0].turn("restarting")
    router.submit(asked(profile="gone"), [].append)
    assert "r" in made.replicas["bf16"][0].held
