"""The noise levels that pictures are drawn at, and the paths between them, against schedulers."""

import copy
from dataclasses import replace

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from fluxline.engine import Engine
from fluxline.engine.ticket import new_request
from fluxline.models.adapted.levels import levels_of
from fluxline.models.adapted.model import AdaptedModel
from tests.models.adapted.oracle import BUDGET, draw_ours, draw_theirs, theirs
from tests.models.nearness import psnr


def visited(model, steps, **params):
    """The sigmas that a model is evaluated at."""
    request = new_request("", seed=0, params={"steps": steps, **params})
    with Engine(model, budget=BUDGET, threads=1) as engine:
        return list(engine.receipts(request)[0].sigmas)


@pytest.mark.parametrize("steps", [1, 4, 30])
@pytest.mark.parametrize("name", ["sd3", "hunyuan-image", "sana"])
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # theirs
def test_a_flow_visits_its_schedulers_sigmas(opened, name, steps):
    model = opened(name)
    scheduler = copy.deepcopy(model.family.pipe.scheduler)
    own = [1 - i / steps for i in range(steps)] if name == "hunyuan-image" else None
    scheduler.set_timesteps(**({"sigmas": own} if own else {"num_inference_steps": steps}))

    assert visited(model, steps) == pytest.approx(scheduler.sigmas.tolist(), abs=1e-6)


@pytest.mark.parametrize("steps", [2, 30])
def test_a_shift_by_size_and_a_last_sigma_are_its_schedulers(opened, steps):
    model = opened("qwen-image")
    scheduler = copy.deepcopy(model.family.pipe.scheduler)
    tokens = 128 * 64 // 16**2
    mu = 0.5 + (0.9 - 0.5) / (8192 - 256) * (tokens - 256)
    scheduler.set_timesteps(sigmas=[1 - i / steps for i in range(steps)], mu=mu)

    sigmas = visited(model, steps, width=128, height=64)

    assert sigmas == pytest.approx(scheduler.sigmas.tolist(), abs=1e-6)
    assert sigmas[-2] == pytest.approx(0.02)


@pytest.mark.parametrize("schedule", ["simple", "karras", "exponential"])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # theirs
def test_a_variance_preserving_model_visits_its_schedulers_levels(opened, spacing, schedule):
    model = spaced(opened("sd"), spacing)
    scheduler = EulerDiscreteScheduler.from_config(
        model.family.pipe.scheduler.config,
        timestep_spacing=spacing,
        use_karras_sigmas=schedule == "karras",
        use_exponential_sigmas=schedule == "exponential",
    )
    scheduler.set_timesteps(20)

    sigmas = visited(model, 20, schedule=schedule)

    ratios = [sigma / (1 - sigma) for sigma in sigmas]
    assert ratios == pytest.approx(scheduler.sigmas.tolist(), rel=1e-4)
    told = [model.family.timestep(sigma) for sigma in sigmas[:-1]]
    assert told == pytest.approx(scheduler.timesteps.tolist(), abs=1e-2)


@pytest.mark.parametrize("kind", [DPMSolverMultistepScheduler, UniPCMultistepScheduler])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # theirs
def test_a_solver_that_leaves_out_the_lowest_level_is_followed(opened, spacing, kind):
    own = opened("sd").family.pipe.scheduler.config
    scheduler = kind.from_config(own, timestep_spacing=spacing)
    scheduler.set_timesteps(20)

    sigmas = levels_of(scheduler).spaced(20)

    ratios = [sigma / (1 - sigma) for sigma in sigmas]
    assert ratios == pytest.approx(scheduler.sigmas[:-1].tolist(), rel=1e-4)


def test_every_level_is_the_one_of_its_timestep(opened):
    levels = opened("sd").family.levels

    told = [levels.timestep(sigma) for sigma in levels.sigmas]

    assert told == pytest.approx(range(1000), abs=1e-6)
    assert (levels.timestep(0.0), levels.timestep(1.0)) == (0.0, 999.0)


def spaced(model, spacing):
    """The model with another spacing of its levels."""
    family = copy.copy(model.family)
    family.levels = replace(family.levels, spacing=spacing)
    spec = replace(model.spec, levels=family.levels)
    return AdaptedModel(spec, family=family, vae=model.vae, weights=model.weights)


@pytest.mark.parametrize(
    ("asked", "scheduler", "options"),
    [
        ({"sampler": "euler"}, DDIMScheduler, {"set_alpha_to_one": True, "clip_sample": False}),
        ({"sampler": "ddim", "eta": 1.0}, DDPMScheduler, {"clip_sample": False}),
        ({"sampler": "dpmpp_2m"}, DPMSolverMultistepScheduler, {}),
        ({"sampler": "unipc"}, UniPCMultistepScheduler, {"solver_order": 2}),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
@pytest.mark.parametrize("name", ["sd", pytest.param("sd-v", marks=pytest.mark.slow)])
def test_samplers_of_the_flow_are_those_of_the_other_path(opened, name, asked, scheduler, options):
    model = spaced(opened(name), "trailing")
    told = {"width": 64, "height": 64, "seed": 7}

    ours = draw_ours(model, "a fox", steps=5, cfg_scale=1.0, **told, **asked)

    pipe = theirs(model, scheduler, timestep_spacing="trailing", **options)
    drawn = draw_theirs(pipe, prompt="a fox", num_inference_steps=5, guidance_scale=1.0, **told)
    assert drawn.std() > 5
    assert psnr(ours, drawn) >= 60


def test_the_paths_meet_where_the_algebra_says():
    sigma, x0, n = 0.7, torch.tensor(2.0), torch.tensor(-1.0)
    k = sigma / (1 - sigma)
    z = (x0 + k * n) / (1 + k**2) ** 0.5

    x = (1 - sigma) * x0 + sigma * n

    assert torch.allclose(x, z * (1 + k**2) ** 0.5 / (1 + k))
