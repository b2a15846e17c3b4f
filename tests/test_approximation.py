"""What a request's `parallel` means."""

import pytest

from fluxline.approximation import Approximation, approximation_of, remembered
from fluxline.errors import InvalidParams


@pytest.mark.parametrize(
    "text", ["piflux", "distrifusion", "pipefusion,sync=3", "piflux,sync=2,every=8"]
)
def test_what_is_read_is_spelt_as_it_was(text):
    assert approximation_of(text).spelt == text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "one of piflux"),
        ("ulysses=2", "ranks are the server's"),
        ("piflux;sync=2", "one of piflux"),
        ("piflux,warmup=2", "may have sync=N and every=N"),
        ("piflux,sync=1,sync=2", "once each"),
        ("piflux,sync=0", "from 1 to 9999"),
        ("piflux,sync=-1", "from 1 to 9999"),
        ("piflux,sync=²", "from 1 to 9999"),
        ("piflux,sync=", "from 1 to 9999"),
        ("piflux,sync=" + "9" * 5000, "from 1 to 9999"),
        ("pipefusion,every=2", "piflux's"),
    ],
)
def test_what_makes_no_sense_is_refused_by_its_field(text, why):
    with pytest.raises(InvalidParams, match=why) as caught:
        approximation_of(text)
    assert caught.value.field == "parallel"


@pytest.mark.parametrize(
    ("mode", "evaluations", "sync"),
    [("piflux", 28, 3), ("piflux", 16, 2), ("distrifusion", 4, 1), ("pipefusion", 50, 1)],
)
def test_a_tenth_of_the_evaluations_are_exact_unless_said(mode, evaluations, sync):
    assert Approximation(mode=mode).settled(evaluations, 4).sync == sync
    assert Approximation(mode=mode, sync=4).settled(evaluations, 4).sync == 4


@pytest.mark.parametrize(
    "said",
    [
        {"mode": "piflux", "sync": 0},
        {"mode": "piflux", "every": -1},
        {"mode": "pipefusion", "sync": True},
        {"mode": "distrifusion", "every": 2},
    ],
)
def test_what_comes_in_no_text_has_the_same_bounds(said):
    with pytest.raises(InvalidParams):
        Approximation(**said)


@pytest.mark.parametrize(
    ("mode", "blocks"), [("piflux", 57), ("distrifusion", 114), ("pipefusion", 8)]
)
def test_a_rank_remembers_so_many_blocks(mode, blocks):
    assert remembered(mode, 57, 8) == blocks


def test_piflux_with_too_few_evaluations_wants_to_be_told_how_many_are_exact():
    with pytest.raises(InvalidParams, match="16 evaluations or more; got 15"):
        Approximation(mode="piflux").settled(15, 4)
    assert Approximation(mode="piflux", every=2).settled(15, 4).sync == 2
    with pytest.raises(InvalidParams, match="at most the evaluations, 15; got 16"):
        Approximation(mode="piflux", sync=16).settled(15, 4)
