"""Schedules against the contract, scipy and diffusers."""

import math
from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta as beta_distribution

from fluxline.request import ScheduleName
from fluxline.samplers import SCHEDULES, dynamic_shift, empirical_shift
from fluxline.samplers.schedules import _beta_quantile, shifted

# diffusers keeps sigmas in float32 and computes some of them there: a few roundings near 1.
DIFFUSERS_ATOL = 5e-7

DIFFUSERS_FLAGS = {
    "simple": {},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
}

each_schedule = pytest.mark.parametrize("name", SCHEDULES)


def flux_pipeline_sigmas(steps: int, mu: float | None = None, **config: object) -> list[float]:
    # What FluxPipeline.__call__ does: evenly spaced sigmas, bent by the scheduler.
    scheduler = FlowMatchEulerDiscreteScheduler(**config)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps).tolist(), mu=mu)
    return scheduler.sigmas.tolist()


def test_every_schedule_a_request_may_name_exists():
    assert set(SCHEDULES) == set(get_args(ScheduleName))


@each_schedule
@given(steps=st.integers(1, 60), shift=st.floats(0.05, 20))
def test_sigmas_fall_strictly_from_one_to_exactly_zero(name, steps, shift):
    sigmas = SCHEDULES[name](steps, shift)

    assert len(sigmas) == steps + 1
    assert sigmas[0] == 1.0
    assert sigmas[-1] == 0.0
    assert all(high > low for high, low in pairwise(sigmas))


@each_schedule
def test_a_single_step_goes_from_one_to_zero(name):
    assert SCHEDULES[name](1, 3.0) == [1.0, 0.0]


def test_simple_unshifted_is_evenly_spaced():
    assert SCHEDULES["simple"](4, 1.0) == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_a_shift_above_one_spends_more_steps_near_the_noise():
    assert SCHEDULES["simple"](4, 3.0)[2] == pytest.approx(0.75)


@given(shift=st.floats(1e-3, 1e3))
def test_shift_leaves_both_ends_exactly_where_they_are(shift):
    assert shifted(0.0, shift) == 0.0
    assert shifted(1.0, shift) == 1.0


@each_schedule
@pytest.mark.parametrize("shift", [1.0, 1.5, 3.0, 0.5])
@pytest.mark.parametrize("steps", [1, 2, 4, 28, 50])
def test_static_shift_agrees_with_diffusers(name, steps, shift):
    theirs = flux_pipeline_sigmas(steps, shift=shift, **DIFFUSERS_FLAGS[name])

    assert SCHEDULES[name](steps, shift) == pytest.approx(theirs, abs=DIFFUSERS_ATOL)


@each_schedule
@pytest.mark.parametrize("tokens", [256, 1024, 4096, 8100])
@pytest.mark.parametrize("steps", [1, 4, 28])
def test_dynamic_shift_agrees_with_diffusers(name, steps, tokens):
    mu = calculate_shift(tokens)
    theirs = flux_pipeline_sigmas(steps, mu=mu, use_dynamic_shifting=True, **DIFFUSERS_FLAGS[name])

    ours = SCHEDULES[name](steps, dynamic_shift(tokens))

    assert ours == pytest.approx(theirs, abs=DIFFUSERS_ATOL)


def test_dynamic_shift_passes_through_its_two_points():
    assert dynamic_shift(256) == pytest.approx(math.exp(0.5))
    assert dynamic_shift(4096) == pytest.approx(math.exp(1.15))


def test_dynamic_shift_takes_another_models_numbers():
    numbers = {"base_seq_len": 128, "max_seq_len": 8192, "base_shift": 0.9, "max_shift": 1.6}

    mu = calculate_shift(1000, *numbers.values())

    assert dynamic_shift(1000, **numbers) == pytest.approx(math.exp(mu))


@each_schedule
@pytest.mark.parametrize("tokens", [256, 4096, 4300, 4301, 8100])
@pytest.mark.parametrize("steps", [1, 4, 50, 200])
def test_empirical_shift_agrees_with_diffusers(name, steps, tokens):
    mu = compute_empirical_mu(tokens, steps)
    theirs = flux_pipeline_sigmas(steps, mu=mu, use_dynamic_shifting=True, **DIFFUSERS_FLAGS[name])

    ours = SCHEDULES[name](steps, empirical_shift(tokens, steps))

    assert ours == pytest.approx(theirs, abs=DIFFUSERS_ATOL)


def test_beta_quantiles_are_scipys():
    p = np.concatenate([np.linspace(0, 1, 1001), [1e-9, 1e-5, 0.5 - 1e-12, 0.5 + 1e-12]])

    ours = [_beta_quantile(each) for each in p]

    # Both are double precision through and through: agreement to a few roundings.
    np.testing.assert_allclose(ours, beta_distribution.ppf(p, 0.6, 0.6), rtol=1e-14, atol=0)
