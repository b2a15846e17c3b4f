"""What a fault on one rank means where the others wait for it, and where they do not."""

from copy import copy
from types import SimpleNamespace

import pytest
import torch

from fluxline.engine.intake import Intake
from fluxline.engine.job import Plan
from fluxline.engine.runner import Runner
from fluxline.engine.ticket import new_request
from fluxline.engine.tune import tune
from fluxline.errors import DeviceLost
from fluxline.parallel.crew import Crew

FULL = torch.OutOfMemoryError("CUDA out of memory")


class Shared(Crew):
    """A rank of several, of which the others draw elsewhere."""

    @property
    def is_shared(self):
        return True


@pytest.fixture
def model(schnell):
    return copy(schnell)


def drawn(model, scorer=None, **wishes):
    """What becomes of a picture: the outcome of its decoding."""
    runner = Runner(model, scorer, crew=Shared.alone())
    intake = Intake(model.spec, lambda loras: (), is_technical=False)
    jobs = tuple(intake.jobs_of(new_request("a boat", seed=3, params={"steps": 1}, **wishes)))
    runner.execute(Plan(admit=jobs, evaluate=jobs))
    return jobs, runner.execute(Plan(decode=jobs))


def test_a_shared_decoding_that_has_no_room_is_not_begun_anew_by_one_rank(model):
    begun = []

    def decode(*given):
        begun.append(model.banded.whole_pixels)
        raise FULL

    model.decode = decode
    with pytest.raises(DeviceLost):
        drawn(model)
    assert len(begun) == 1


def test_rows_that_one_rank_has_no_room_for_end_the_measuring_of_all(model):
    def evaluate(x, sigmas, contexts):
        if len(sigmas) > 1:
            raise FULL
        return x

    model.evaluate = evaluate
    with pytest.raises(torch.OutOfMemoryError):
        tune(model, lambda said: None, Shared.alone())
    assert tune(model, lambda said: None, Crew.alone()).batch_tokens > 0


def test_pictures_that_the_first_rank_cannot_judge_fail_alone(model):
    def judge(pictures, prompts):
        raise RuntimeError("no CLIP here")

    scorer = SimpleNamespace(name="clip", score=judge)
    jobs, outcome = drawn(model, lambda: scorer, n=2, top_k=1)

    assert set(outcome.failed) == {job.id for job in jobs}
    assert not outcome.pictures
