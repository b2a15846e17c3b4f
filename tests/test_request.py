"""Requests: their pictures, their cost, the best of them."""

import pytest

from fluxline.ability import cost, steps_left
from fluxline.request import (
    SEED_LIMIT,
    GenerationRequest,
    ImageResult,
    Planned,
    SamplingParams,
    best,
    ranks,
)
from fluxline.samplers import evaluations
from tests.worker.fake_engine import INFO


def asked(**fields):
    return GenerationRequest(**{"id": "r", "prompt": "p", "seed": 5, **fields})


def image(index, score):
    return ImageResult(
        index=index, seed=index, data=b"", format="png", width=8, height=8, model="m",
        params=SamplingParams(), timings_s={}, score=score,
    )  # fmt: skip


def test_pictures_have_seeds_in_a_row_and_go_round_at_the_end():
    assert [p.seed for p in asked(n=3).pictures()] == [5, 6, 7]
    assert [p.seed for p in asked(n=2, seed=SEED_LIMIT - 1).pictures()] == [SEED_LIMIT - 1, 0]


def test_a_plan_stands_for_number_seed_and_params():
    plan = (Planned(seed=9, params=SamplingParams(steps=2)),)
    request = asked(n=7, plan=plan)
    assert (request.count, request.pictures()) == (1, plan)


@pytest.mark.parametrize(
    ("steps", "strength", "left"),
    [(20, 1, 20), (20, 0.75, 15), (5, 0.75, 4), (1, 0.5, 1), (20, 0.001, 1), (20, 1e-17, 1)],
)
def test_a_strength_is_a_share_of_the_steps_and_one_at_least_is_walked(steps, strength, left):
    assert steps_left(steps, strength) == left


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m"])
def test_cost_counts_evaluations_as_the_samplers_do(sampler):
    params = SamplingParams(width=64, height=32, steps=5, sampler=sampler)
    assert cost(asked(n=3, params=params), INFO) == 3 * 64 * 32 * evaluations(sampler, 5)


def test_cost_takes_the_models_defaults_and_counts_true_guidance_twice():
    plain = cost(asked(), INFO)
    assert plain == INFO.native_width * INFO.native_height * INFO.default_steps
    assert cost(asked(params=SamplingParams(cfg_scale=2.0)), INFO) == 2 * plain


@pytest.mark.parametrize(
    ("strength", "left"), [(None, 3), (0.5, 2), (0.01, 1), (1e-17, 1), (1.0, 4)]
)
def test_what_starts_from_a_picture_costs_the_steps_that_are_left(strength, left):
    params = SamplingParams(width=64, height=32, steps=4, strength=strength)
    assert cost(asked(params=params, source=b"..."), INFO) == 64 * 32 * left


def test_the_best_come_first_and_of_equals_the_earlier():
    images = [image(0, 0.1), image(1, 0.9), image(2, 0.9), image(3, -0.5)]
    assert [i.index for i in best(reversed(images), 3)] == [1, 2, 0]
    assert [i.index for i in best(reversed(images), None)] == [0, 1, 2, 3]


def test_ranks_are_places_among_those_that_have_a_score():
    images = [image(0, 0.1), image(1, None), image(2, 0.9), image(3, 0.9)]
    assert ranks(images) == {2: 1, 3: 2, 0: 3}
    assert ranks([image(0, None)]) == {}
