"""In place of a profile that is down: only who can draw the request, and only once it is loaded."""

from dataclasses import replace

import pytest

from fluxline.approximation import approximation_of
from fluxline.errors import InvalidParams
from fluxline.fleet import router as routing
from fluxline.fleet.router import Router
from fluxline.request import LoraRef, SamplingParams
from tests.fleet.conftest import asked, until
from tests.worker.fake_engine import INFO

LORA = SamplingParams(loras=(LoraRef("ink"),))
NEAR = SamplingParams(steps=8, parallel=approximation_of("piflux"))
PICTURES = {"source": b"", "mask": b""}


@pytest.fixture
async def profiles(made):
    """one, which is down, and those that stand in for it: two, then three."""
    profiles = [
        made.profile("one", fallback="two"),
        made.profile("two", fallback="three"),
        made.profile("three"),
    ]
    for one in profiles:
        one.start()
        made.replicas[one.name][0].turn("ready")
    made.replicas["one"][0].turn("restarting")
    return profiles


@pytest.mark.parametrize(
    ("of_two", "wanted", "name"),
    [
        ({}, {}, "two"),
        ({}, {"params": SamplingParams(width=999)}, "one"),  # too large for all of them
        ({"max_width": 256}, {"params": SamplingParams(width=512)}, "three"),
        ({"max_width": 256}, {"params": SamplingParams(width=256)}, "two"),
        ({"samplers": ("euler",)}, {"params": SamplingParams(sampler="ddim")}, "three"),
        ({"needs_picture": True}, {}, "three"),
        ({"fills": True}, {"source": b""}, "three"),
        ({"fills": True}, PICTURES, "two"),
        ({}, {"references": (b"",)}, "one"),
        ({"references": 1}, {"references": (b"",)}, "two"),
        ({"references": 1}, {"references": (b"", b"")}, "one"),
        ({"references": 1}, {"source": b""}, "three"),  # it would look at it, not draw on it
        ({"references": 1}, PICTURES, "two"),
        ({"wears_loras": False}, {"params": LORA}, "three"),
        ({"wears_loras": False}, {}, "two"),
        ({"family": "flux2"}, {"params": LORA}, "three"),
        ({}, {"params": NEAR}, "one"),  # nobody else has ranks: none may draw it exactly
        ({"ranks": 2, "approximations": ("piflux",)}, {"params": NEAR}, "two"),
        ({"ranks": 2, "approximations": ("pipefusion",)}, {"params": NEAR}, "one"),
    ],
    ids=str,
)
async def test_who_can_draw_a_request_stands_in(of_two, wanted, name, profiles, made):
    made.replicas["two"][0].models = (replace(INFO, **of_two),)

    assert Router(profiles).standing(asked(profile="one", **wanted))[0].name == name


async def test_who_is_down_stands_in_for_nobody(profiles, made):
    router = Router(profiles)
    lines = [[one.name for one in router.line_of("one")]]
    made.replicas["two"][0].turn("failed")
    lines += [[one.name for one in router.line_of(name)] for name in ("one", "three")]

    assert lines == [["two", "three"], ["three"], []]


async def test_nobody_is_given_up_who_may_be_drawn_yet(profiles, made):
    router, large = Router(profiles), asked(params=SamplingParams(width=999))
    assert router.why_never(large) is None

    made.replicas["one"][0].turn("failed")

    assert router.why_never(large) == "it is failed"
    assert router.why_never(asked()) is None


@pytest.fixture
async def lazy(made):
    """A router of one, which is down, and of two, which is loaded on demand in its place."""
    one, two = made.profile("one", fallback="two"), made.profile("two", load="lazy")
    one.start()
    made.replicas["one"][0].turn("ready")
    made.replicas["one"][0].turn("restarting")
    return Router([one, two])


async def test_for_a_short_absence_nobody_is_loaded(lazy, made):
    lazy.takers()
    lazy.call_in(asked())

    assert "two" not in made.replicas
    assert lazy.standing(asked()) == (lazy.default, "")


async def test_for_a_longer_one_somebody_is_and_draws_once_it_is_there(lazy, made, monkeypatch):
    monkeypatch.setattr(routing, "STAND_IN_AFTER_S", 0.0)
    lazy.takers()
    lazy.call_in(asked())
    await until(lambda: "two" in made.replicas)
    assert lazy.standing(asked()) == (lazy.default, "")

    made.replicas["two"][0].turn("ready")

    assert lazy.standing(asked())[1] == "profile one is down: drawn with two"
    assert [(one.name, names) for one, names in lazy.takers()] == [("two", ["one", "two"])]


async def test_an_absence_is_over_when_it_is_back(lazy, made, monkeypatch):
    monkeypatch.setattr(routing, "STAND_IN_AFTER_S", 1e9)
    lazy.takers()
    made.replicas["one"][0].turn("ready")
    assert (lazy.takers()[0][1], lazy.down) == (["one"], [])
    made.replicas["one"][0].turn("restarting")
    lazy.takers()
    lazy.call_in(asked())

    assert "two" not in made.replicas


async def test_for_one_that_has_failed_for_good_somebody_is_loaded_at_once(lazy, made):
    made.replicas["one"][0].turn("failed")
    lazy.call_in(asked())
    await until(lambda: "two" in made.replicas)
    assert lazy.why_never(asked()) is None

    made.replicas["two"][0].turn("failed")

    await until(lambda: lazy.why_never(asked()))
    assert lazy.standing(asked()) == (lazy.default, "")


async def test_one_that_is_known_to_be_unable_is_not_loaded_again(lazy, made):
    made.replicas["one"][0].turn("failed")
    two = list(lazy)[1]
    two.load()
    await made.loaded(two)
    await two.unload()

    lazy.call_in(asked(references=(b"",)))
    assert two.state == "unloaded"
    lazy.call_in(asked())
    assert two.state == "starting"


async def test_of_a_profile_that_is_gone_one_with_its_model_draws(profiles):
    router = Router(profiles)

    assert router.heir("three").name == "three"
    one, note = router.standing(asked(profile="gone", model="three"))
    assert (one.name, note) == ("three", "profile gone is not served any more: drawn with three")


async def test_what_the_heir_cannot_draw_is_refused_by_both_their_names(profiles):
    router = Router(profiles[1:])

    with pytest.raises(
        InvalidParams, match=r"profile gone is not .*, and two cannot draw this: fa"
    ):
        router.submit(asked(profile="gone", references=(b"",)), [].append)
