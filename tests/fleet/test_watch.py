"""When a worker is taken to hang, look by look."""

import pytest

from fluxline import wire
from fluxline.ability import EngineStats
from fluxline.fleet.watch import Patience, Watch
from fluxline.request import Done, Started

PATIENCE = Patience(look_s=1, silent_s=60, stuck_s=900)
BEAT = wire.Told(EngineStats())


def looked(watch, seconds, *, has_work=True, beats=True):
    """What was said at the looks of so many seconds."""
    said = []
    for _ in range(seconds):
        if beats:
            watch.heard(BEAT)
        said.append(watch.look(has_work=has_work))
    return said


@pytest.fixture
def watch():
    return Watch(PATIENCE)


def test_a_worker_may_be_silent_for_its_time_and_no_longer(watch):
    assert not any(looked(watch, 60, has_work=False, beats=False))
    assert watch.look(has_work=False) == "said nothing for 60 s"


def test_a_worker_without_work_may_do_nothing_for_ever(watch):
    assert not any(looked(watch, 10_000, has_work=False))


def test_an_engine_with_work_may_finish_nothing_for_its_time_and_no_longer(watch):
    assert not any(looked(watch, 900))
    watch.heard(BEAT)
    assert watch.look(has_work=True) == "got nowhere for 900 s"


@pytest.mark.parametrize(
    "sign",
    [wire.happened(Started("a")), wire.happened(Done("a")), wire.Told(EngineStats(forwards=1))],
)
def test_any_sign_of_work_starts_the_time_anew(watch, sign):
    looked(watch, 900)
    watch.heard(sign)
    assert not any(looked(watch, 899))


def test_an_engine_with_large_batches_gets_the_time_that_twenty_of_them_take(watch):
    slow = EngineStats(forwards=1, tokens=100, evaluated_s=10.0, batch_tokens=1000)
    watch.heard(wire.Told(slow))

    def said(seconds):
        for _ in range(seconds):
            watch.heard(wire.Told(slow))
            found = watch.look(has_work=True)
        return found

    assert said(2000) == ""
    assert said(1) == "got nowhere for 2000 s"


def test_without_a_limit_an_engine_may_take_for_ever():
    assert not any(looked(Watch(Patience(stuck_s=None)), 10_000))
