"""The plan of a batch: spread over all combinations, with seeds by policy."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxline.server.dialects.diversity import Diversity

SEEDS_OF_42 = [3198671488, 3702088234, 1458044761]


def combinations(choices):
    return [(c.sampler, c.steps, c.cfg_scale) for c in choices]


@given(count=st.integers(1, 100), seed=st.integers(0, 2**32 - 1))
def test_no_combination_comes_twice_before_all_came_once(count, seed):
    diversity = Diversity(base_seed=seed)
    times = Counter(combinations(diversity.plan(count)))
    assert len(times) == min(count, 27)
    assert max(times.values()) - min(times.values()) <= 1


@given(count=st.integers(1, 60), seed=st.integers(0, 2**32 - 1))
def test_a_base_seed_makes_the_plan_reproducible(count, seed):
    assert Diversity(base_seed=seed).plan(count) == Diversity(base_seed=seed).plan(count)


def test_without_a_base_seed_every_plan_is_another():
    assert Diversity().plan(16) != Diversity().plan(16)


def test_another_base_seed_is_another_order():
    assert combinations(Diversity(base_seed=1).plan(9)) != combinations(
        Diversity(base_seed=2).plan(9)
    )


def test_values_given_twice_count_once():
    plan = Diversity(samplers=("euler", "euler"), steps=(4, 4), cfg_scales=(1.0,), base_seed=0)
    assert combinations(plan.plan(3)) == 3 * [("euler", 4, 1.0)]


@pytest.mark.parametrize(("base_seed", "wanted"), [(None, 0), (7, 7)])
def test_fixed_seeds_are_the_base_seed_or_nought(base_seed, wanted):
    plan = Diversity(seeds="fixed", base_seed=base_seed).plan(5)
    assert [choice.seed for choice in plan] == 5 * [wanted]


def test_random_seeds_differ_even_with_a_base_seed():
    diversity = Diversity(seeds="random", base_seed=7)
    assert len({choice.seed for choice in diversity.plan(20) + diversity.plan(20)}) == 40


def test_mixed_seeds_are_the_same_in_every_process():
    seeds = [choice.seed for choice in Diversity(base_seed=42).plan(3)]
    assert seeds == SEEDS_OF_42
    assert all(0 <= seed < 2**32 for seed in seeds)
