"""Samplers against their protocol, exact solutions and orders of convergence."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fluxline.request import SamplerName
from fluxline.samplers import (
    SCHEDULES,
    SOLVERS,
    evaluations,
    is_stochastic,
    start,
)
from tests.samplers.flows import (
    Gaussian,
    Mixture,
    begin,
    curved,
    drive,
    no_noise,
    noise_like,
    normal,
    normal_rank,
)

DETERMINISTIC = ["euler", "heun", "ddim", "dpmpp_2m", "unipc"]
STOCHASTIC = [("ddim", 0.5), ("ddim", 1.0), ("euler_ancestral", 0.0)]
ALL = [(name, 0.0) for name in DETERMINISTIC] + STOCHASTIC

each_sampler = pytest.mark.parametrize(("name", "eta"), ALL)
each_deterministic = pytest.mark.parametrize("name", DETERMINISTIC)
each_stochastic = pytest.mark.parametrize(("name", "eta"), STOCHASTIC)
each_length = pytest.mark.parametrize("steps", [1, 2, 3, 8])


# The table


def test_every_sampler_a_request_may_name_exists():
    assert set(SOLVERS) == set(get_args(SamplerName))


def test_only_ancestral_steps_and_ddim_with_eta_are_stochastic():
    assert [(name, eta) for name, eta in ALL if is_stochastic(name, eta)] == STOCHASTIC


# The protocol


@each_sampler
@each_length
def test_a_sampler_calls_the_model_as_often_as_evaluations_says(name, eta, steps):
    calls = []

    def count(x: Tensor, sigma: float) -> Tensor:
        calls.append(sigma)
        return curved(x, sigma)

    drive(begin(name, eta, SCHEDULES["simple"](steps, 3.0)), count)

    assert len(calls) == evaluations(name, steps)


@each_sampler
def test_sigmas_asked_never_rise_and_never_reach_zero(name, eta):
    asked = []

    def listen(x: Tensor, sigma: float) -> Tensor:
        asked.append(sigma)
        return curved(x, sigma)

    drive(begin(name, eta, SCHEDULES["beta"](6, 3.0)), listen)

    assert asked[0] == 1.0
    assert all(high >= low for high, low in pairwise(asked))
    assert asked[-1] > 0


@each_deterministic
def test_a_deterministic_sampler_draws_no_noise(name):
    drive(start(name, normal(3), SCHEDULES["simple"](4, 1.0), no_noise), curved)


@each_stochastic
@each_length
def test_noise_is_drawn_in_every_step_but_the_last(name, eta, steps):
    x, draws = normal(3), []

    def count() -> Tensor:
        draws.append(1)
        return normal(3)

    drive(start(name, x, SCHEDULES["simple"](steps, 1.0), count, eta), curved)

    assert len(draws) == steps - 1


@each_sampler
def test_the_starting_noise_is_left_as_it_was(name, eta):
    x = normal(5)

    drive(start(name, x, SCHEDULES["simple"](4, 1.0), noise_like(x), eta), curved)

    assert torch.equal(x, normal(5))


@each_sampler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_shape_and_dtype_are_those_given(name, eta, dtype):
    x = normal(1, 4, 6, dtype=dtype)

    out = drive(start(name, x, SCHEDULES["simple"](4, 1.0), noise_like(x), eta), curved)

    assert out.shape == x.shape
    assert out.dtype == dtype


@each_sampler
def test_a_sampler_closed_early_just_ends(name, eta):
    sampling = begin(name, eta, SCHEDULES["simple"](4, 1.0))
    next(sampling)

    sampling.close()

    with pytest.raises(StopIteration):
        next(sampling)


@settings(max_examples=25)
@given(order=st.lists(st.integers(0, len(ALL) - 1), max_size=60))
def test_interleaved_samplers_equal_their_solo_runs_bit_for_bit(order):
    sigmas = SCHEDULES["simple"](5, 3.0)
    solo = [drive(begin(name, eta, sigmas, seed=i), curved) for i, (name, eta) in enumerate(ALL)]

    running = {i: begin(name, eta, sigmas, seed=i) for i, (name, eta) in enumerate(ALL)}
    wanted = {i: next(sampling) for i, sampling in running.items()}
    finished: dict[int, Tensor] = {}
    for i in [*order, *(i for _ in range(9) for i in range(len(ALL)))]:
        if i in finished:
            continue
        try:
            wanted[i] = running[i].send(curved(*wanted[i]))
        except StopIteration as end:
            finished[i] = end.value

    assert all(torch.equal(finished[i], solo[i]) for i in range(len(ALL)))


# Exactness


@each_deterministic
@each_length
def test_a_constant_velocity_is_followed_exactly(name, steps):
    noise, picture = normal(4, 6, seed=1), normal(4, 6, seed=2)

    out = drive(
        start(name, noise, SCHEDULES["simple"](steps, 3.0), no_noise),
        lambda x, sigma: noise - picture,
    )

    # A few float32 roundings of numbers of size 3.
    torch.testing.assert_close(out, picture, atol=2e-6, rtol=0)


@each_sampler
@each_length
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_model_sure_of_its_picture_draws_it(name, eta, steps, schedule):
    picture, noise = normal(4, 6, seed=2), normal(4, 6)

    out = drive(
        start(name, noise, SCHEDULES[schedule](steps, 3.0), noise_like(noise), eta),
        lambda x, sigma: (x - picture) / sigma,
    )

    # (x - picture) / sigma * sigma: a few float32 roundings of numbers of size 3.
    torch.testing.assert_close(out, picture, atol=2e-6, rtol=0)


@each_sampler
@each_length
def test_the_last_step_returns_the_last_guess_of_the_picture(name, eta, steps):
    guesses = []

    def velocity(x: Tensor, sigma: float) -> Tensor:
        v = curved(x, sigma)
        guesses.append(x - sigma * v)
        return v

    out = drive(begin(name, eta, SCHEDULES["simple"](steps, 1.0)), velocity)

    # Bit for bit: at sigma 0 nothing else may enter, least of all an infinite lambda.
    assert torch.equal(out, guesses[-1])


@each_sampler
def test_a_schedule_that_starts_below_one_is_followed_too(name, eta):
    picture, noise = normal(4, 6, seed=2), normal(4, 6)
    sigmas = SCHEDULES["simple"](8, 1.0)[3:]
    x = (1 - sigmas[0]) * picture + sigmas[0] * noise

    out = drive(start(name, x, sigmas, noise_like(x), eta), lambda x, sigma: (x - picture) / sigma)

    torch.testing.assert_close(out, picture, atol=2e-6, rtol=0)


def test_ddim_without_eta_is_euler():
    sigmas = SCHEDULES["simple"](20, 3.0)

    ddim = drive(begin("ddim", 0.0, sigmas), curved)

    # The same step written as a mix of picture and noise: a few float32 roundings a step.
    torch.testing.assert_close(ddim, drive(begin("euler", 0.0, sigmas), curved), atol=5e-6, rtol=0)


@pytest.mark.parametrize("name", ["dpmpp_2m", "unipc"])
@pytest.mark.parametrize("steps", [2, 3, 8, 20])
def test_a_start_at_one_is_the_limit_of_starts_below_it(name, steps):
    flow, x = Mixture().velocity, torch.linspace(-2, 2, 9, dtype=torch.float64)
    sigmas = SCHEDULES["simple"](steps, 1.0)

    at_one = drive(start(name, x, sigmas, no_noise), flow)
    below = [
        drive(start(name, x, [1 - gap, *sigmas[1:]], no_noise), flow) for gap in (1e-3, 1e-6, 1e-12)
    ]

    # The weight of the past at sigma 1 fades as 1 / lambda, so slowly; but it fades.
    distances = [(each - at_one).abs().max().item() for each in below]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.05


# Order of convergence


def slopes(errors: Sequence[float]) -> list[float]:
    return [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]


def mixture_error(name: SamplerName, steps: int) -> float:
    noise, flow = torch.linspace(-2, 2, 11, dtype=torch.float64), Mixture()
    out = drive(start(name, noise, SCHEDULES["simple"](steps, 1.0), no_noise), flow.velocity)
    return (flow.rank(out) - normal_rank(noise)).abs().max().item()


# dpmpp_2m has error n^-2 log n here, so its slope rises to 2 from below: its steps in lambda do not
# shrink near sigma 0. Measured at 128 -> 256 -> 512: euler 1.00, heun 2.01, 2m 1.78 and 1.81,
# unipc 2.11 and 2.07.
@pytest.mark.parametrize(
    ("name", "order", "slack"),
    [
        ("euler", 1, 0.05),
        ("heun", 2, 0.1),
        ("dpmpp_2m", 2, 0.25),
        ("unipc", 2, 0.15),
    ],
)
def test_error_on_a_nonlinear_flow_falls_with_the_order(name, order, slack):
    errors = [mixture_error(name, steps) for steps in (128, 256, 512)]

    assert slopes(errors) == pytest.approx([order, order], abs=slack)


def gaussian_error_inside(name: SamplerName, steps: int) -> float:
    # Even steps in lambda from -2.5 to 2.5, read before the sampler's first-order last step.
    sigmas = [1 / (1 + math.exp(-2.5 + 5 * i / steps)) for i in range(steps + 1)] + [0.0]
    flow, noise = Gaussian(0.7, 0.5), torch.linspace(-2, 2, 9, dtype=torch.float64)
    sampling = start(name, flow.at(noise, sigmas[0]), sigmas, no_noise)
    x, sigma = next(sampling)
    while sigma > sigmas[-2]:
        x, sigma = sampling.send(flow.velocity(x, sigma))
    return (x - flow.at(noise, sigma)).abs().max().item()


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("dpmpp_2m", 2), ("unipc", 3)])
def test_between_its_first_order_ends_a_multistep_solver_has_its_full_order(name, order):
    errors = [gaussian_error_inside(name, steps) for steps in (32, 64, 128)]

    assert slopes(errors) == pytest.approx([order, order], abs=0.1)


# Statistics


@each_stochastic
def test_at_every_sigma_the_noise_has_the_right_strength(name, eta):
    # Data of one point: whatever was renoised, x must be N((1 - sigma) point, sigma^2).
    point, count = 2.0, 40_000
    x = normal(count)
    seen = []

    def velocity(x: Tensor, sigma: float) -> Tensor:
        seen.append((x.mean().item() - (1 - sigma) * point, x.std().item() / sigma - 1))
        return (x - point) / sigma

    drive(start(name, x, SCHEDULES["simple"](10, 2.0), noise_like(x), eta), velocity)

    # Five standard errors: 5 / sqrt(count) of a mean, 5 / sqrt(2 count) of a std.
    assert all(abs(mean) < 0.025 and abs(std) < 0.018 for mean, std in seen)


@each_stochastic
def test_samples_of_a_gaussian_have_its_mean_and_spread(name, eta):
    flow, x = Gaussian(0.7, 0.5), normal(20_000)

    out = drive(start(name, x, SCHEDULES["simple"](200, 1.0), noise_like(x), eta), flow.velocity)

    # Five standard errors (0.018 and 0.0125) and a first-order bias of at most 0.01 at 200 steps.
    assert out.mean().item() == pytest.approx(0.7, abs=0.03)
    assert out.std().item() == pytest.approx(0.5, abs=0.0225)


@each_stochastic
def test_fresh_noise_enters(name, eta):
    x, sigmas = normal(8), SCHEDULES["simple"](6, 1.0)
    flow = Gaussian(0.0, 1.0).velocity

    first, second = (
        drive(start(name, x, sigmas, noise_like(x, seed), eta), flow) for seed in (1, 2)
    )

    assert not torch.allclose(first, second, atol=0.01)
