"""What docs/parallel.md says of approximate ways is held against controls that take as long."""

import math
from fractions import Fraction

import pytest

from bench.distances import (
    RANKS,
    STEPS,
    WAYS,
    control_of,
    evaluations_of,
    held_out,
    measured,
    settled,
    told,
)
from tests.test_likeness import flat
from training import questions


def test_prompts_are_of_every_kind_that_was_held_out_and_no_two_are_the_same():
    kinds = {prompt: kind for kind, prompt, _ in questions.read("cpu")}
    prompts = held_out(64)

    assert len(set(prompts)) == 64
    assert {kinds[prompt] for prompt in prompts} == {
        kind for kind in kinds.values() if "held out" in kind
    }


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("way", ["piflux", "piflux,every=4", "distrifusion"])
def test_who_divides_every_evaluation_takes_a_share_of_their_time(way, ranks):
    assert evaluations_of(way, ranks) == Fraction(STEPS, ranks)


def test_stages_take_the_time_of_their_formula():
    warmup, stages, parts = 3, 4, 5
    ticks = (STEPS - warmup - 1) * parts + parts + stages - 1
    assert evaluations_of("pipefusion,sync=3", stages) == warmup + ticks / (parts * stages)


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("way", WAYS)
def test_a_control_takes_as_long_and_less_than_one_evaluation_more(way, ranks):
    assert 0 <= control_of(way, ranks) - evaluations_of(way, ranks) < 1


def test_a_way_is_named_with_its_exact_evaluations():
    assert settled("piflux,every=4", 2) == "piflux,sync=3,every=4"


def test_the_worst_are_told_beside_the_mean():
    levels = [*range(101, 120), 101]
    found = measured([flat(level) for level in levels], [flat(100)] * len(levels))
    assert told(found)[0] == (
        f"{sum(found['PSNR']) / 20:.1f} ({found['PSNR'][17]:.1f}, {20 * math.log10(255 / 19):.1f})"
    )
