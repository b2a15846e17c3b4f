"""Samplers against diffusers' schedulers of the same method, given the same sigmas."""

from collections.abc import Callable, Sequence

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from fluxline.samplers import SCHEDULES, start
from tests.samplers.flows import Velocity, begin, curved, drive, no_noise, normal


def drive_diffusers(scheduler, x: Tensor, sigmas: Sequence[float], velocity: Velocity) -> Tensor:
    # The scheduler is given our sigmas, and its step index runs by itself.
    scheduler.sigmas = torch.tensor(sigmas, dtype=x.dtype)
    scheduler.set_begin_index(0)
    for i, sigma in enumerate(sigmas[:-1]):
        x = scheduler.step(velocity(x, sigma), scheduler.timesteps[i], x).prev_sample
    return x


def dpmpp() -> DPMSolverMultistepScheduler:
    return DPMSolverMultistepScheduler(
        use_flow_sigmas=True,
        prediction_type="flow_prediction",
        algorithm_type="dpmsolver++",
        solver_order=2,
    )


def unipc() -> UniPCMultistepScheduler:
    return UniPCMultistepScheduler(
        use_flow_sigmas=True,
        prediction_type="flow_prediction",
        solver_order=2,
        solver_type="bh2",
        predict_x0=True,
    )


def rounded(sigmas: Sequence[float]) -> list[float]:
    return torch.tensor(sigmas, dtype=torch.float32).tolist()


@pytest.mark.parametrize("steps", [1, 4, 20])
@pytest.mark.parametrize(
    ("name", "make"),
    [("euler", FlowMatchEulerDiscreteScheduler), ("dpmpp_2m", dpmpp)],
)
@pytest.mark.parametrize("highest", [1.0, 0.999])
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # theirs
def test_agrees_with_diffusers(name, make: Callable[[], object], steps, highest):
    sigmas = rounded([highest, *SCHEDULES["simple"](steps, 3.0)[1:]])
    scheduler = make()
    scheduler.set_timesteps(steps)

    theirs = drive_diffusers(scheduler, normal(1, 4, 6), sigmas, curved)
    ours = drive(begin(name, 0.0, sigmas), curved)
    # Theirs are float32 coefficients, ours double; measured 9e-7 at most.
    torch.testing.assert_close(ours, theirs, atol=5e-6, rtol=0)


def test_heun_agrees_with_diffusers():
    scheduler = FlowMatchHeunDiscreteScheduler()
    scheduler.set_timesteps(12)
    theirs = normal(1, 4, 6)
    for t in scheduler.timesteps:
        theirs = scheduler.step(curved(theirs, t.item() / 1000), t, theirs).prev_sample
    sigmas = list(dict.fromkeys(scheduler.sigmas.tolist()))  # it lists inner sigmas twice

    ours = drive(begin("heun", 0.0, sigmas), curved)

    # They recover the velocity from x0 in float32, which costs it a digit; measured 5e-6.
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8, 20])
def test_unipc_agrees_with_diffusers_in_double_precision(steps):
    sigmas = [0.999, *SCHEDULES["simple"](steps, 3.0)[1:]]
    x = normal(1, 4, 6, dtype=torch.float64)
    scheduler = unipc()
    scheduler.set_timesteps(steps)

    theirs = drive_diffusers(scheduler, x, sigmas, curved)

    # UniPC is the one scheduler there that keeps float64: roundings only.
    torch.testing.assert_close(
        drive(start("unipc", x, sigmas, no_noise), curved), theirs, atol=1e-12, rtol=0
    )


@pytest.mark.parametrize("steps", [1, 2, 3, 8, 20])
def test_unipc_agrees_with_diffusers_own_flow_schedule(steps):
    scheduler = unipc()
    scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps).double().numpy())
    sigmas = scheduler.sigmas.tolist()  # it starts at 1 - 1e-6 to keep lambda finite

    theirs = drive_diffusers(scheduler, normal(1, 4, 6), sigmas, curved)

    # Theirs are float32 coefficients, ours double; measured 9e-7 at most.
    torch.testing.assert_close(
        drive(begin("unipc", 0.0, sigmas), curved), theirs, atol=5e-6, rtol=0
    )
