"""What a request is predicted to take, where its ranks approximate it."""

from dataclasses import replace

import pytest

from fluxline.ability import cost
from fluxline.approximation import approximation_of
from fluxline.request import GenerationRequest, SamplingParams
from tests.worker.fake_engine import INFO

INFO_OF_FOUR = replace(INFO, ranks=4)


def work(parallel=None, **params):
    """Predicted of a picture, in evaluations."""
    way = None if parallel is None else approximation_of(parallel)
    params = SamplingParams(width=64, height=64, parallel=way, **{"steps": 28, **params})
    request = GenerationRequest(id="r", prompt="p", seed=5, params=params)
    return cost(request, INFO_OF_FOUR) / 64**2


@pytest.mark.parametrize("params", [{}, {"sampler": "heun"}, {"cfg_scale": 2.0}], ids=str)
@pytest.mark.parametrize("way", ["piflux", "piflux,every=4", "distrifusion,sync=3"])
def test_what_skips_no_evaluation_costs_what_is_exact(way, params):
    assert work(way, **params) == work(**params)


def test_pipefusion_costs_what_ranks_draw_exactly_in_its_time():
    """One whole evaluation on four stages, then 27 in five parts, which take 138 turns."""
    assert work("pipefusion") == pytest.approx(4 * (1 + 138 / 20))


def test_evaluations_that_go_through_the_stages_whole_cost_as_often_as_there_are_stages():
    assert work("pipefusion,sync=28") == 4 * work()
    assert work("pipefusion,sync=4", steps=4, cfg_scale=2.0) == 4 * work(steps=4, cfg_scale=2.0)
