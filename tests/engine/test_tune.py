"""What is measured at start-up, on a model and by a clock whose speed the test decides."""

import math

import pytest
import torch

from fluxline.engine import Engine, tune
from fluxline.errors import LoadError


class Clock:
    """Tells the time that forwards have taken."""

    now_s = 0.0

    def perf_counter(self):
        return self.now_s


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(tune, "time", clock)
    return clock


class Paced:
    """A model whose forward takes `fixed_s` and `row_s` for every row."""

    def __init__(self, model, clock, fixed_s, row_s):
        self._model, self._clock, self._fixed_s, self._row_s = model, clock, fixed_s, row_s
        self.device = torch.device("meta")  # no thread counts to try

    def __getattr__(self, name):
        return getattr(self._model, name)

    def evaluate(self, x, sigmas, contexts):
        self._clock.now_s += self._fixed_s + self._row_s * len(sigmas)
        return x


@pytest.mark.parametrize(
    ("fixed_s", "row_s", "rows"),
    [(0.0, 0.02, 1), (0.1, 0.0, 256)],
    ids=["batching does not pay", "batching is free"],
)
def test_a_batch_is_as_large_as_pays(schnell, clock, fixed_s, row_s, rows):
    tokens = 16 + schnell.spec.text_length

    tuning = tune.tune(Paced(schnell, clock, fixed_s, row_s))

    assert tuning.batch_tokens // tokens == rows
    assert tuning.threads == 1


def test_measuring_ends_even_for_a_slow_model(schnell, clock):
    tune.tune(Paced(schnell, clock, 4.0, 0.0))

    assert clock.now_s == 4.0  # one forward, as it took longer than all of them may


@pytest.mark.parametrize("fastest", [1, 2])
def test_the_threads_of_a_cpu_are_those_with_the_fastest_forward(monkeypatch, fastest):
    class Probe:
        def seconds(self, rows):
            return 0.1 if torch.get_num_threads() == fastest else 0.2

    monkeypatch.setattr(tune.os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    before = torch.get_num_threads()
    try:
        assert tune._best_threads(Probe(), math.inf) == fastest
    finally:
        torch.set_num_threads(before)


def test_a_batch_that_does_not_fit_ends_the_search_and_a_row_that_does_not_is_an_error(
    schnell, clock
):
    class Small(Paced):
        def evaluate(self, x, sigmas, contexts):
            if len(sigmas) > self.rows:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().evaluate(x, sigmas, contexts)

    model = Small(schnell, clock, 0.01, 0.0)
    model.rows = 2
    assert tune.tune(model).batch_tokens == 2 * (16 + schnell.spec.text_length)
    model.rows = 0
    with pytest.raises(LoadError, match="no memory to draw 64x64"):
        Engine(model)
