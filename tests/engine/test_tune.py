"""What is measured at start-up, on a model whose speed the test decides."""

import time

import pytest
import torch

from fluxline.engine import Engine, tune
from fluxline.errors import LoadError


class Paced:
    """A model whose forward takes `fixed_s` and `row_s` for every row."""

    def __init__(self, model, fixed_s, row_s):
        self._model, self._fixed_s, self._row_s = model, fixed_s, row_s
        self.device = torch.device("meta")  # no thread counts to try

    def __getattr__(self, name):
        return getattr(self._model, name)

    def evaluate(self, x, sigmas, contexts):
        time.sleep(self._fixed_s + self._row_s * len(sigmas))
        return x


@pytest.mark.parametrize(
    ("fixed_s", "row_s", "rows"),
    [(0.0, 0.02, {1, 2}), (0.1, 0.0, {128, 256})],
    ids=["batching does not pay", "batching is free"],
)
def test_a_batch_is_as_large_as_pays(schnell, fixed_s, row_s, rows):
    tokens = 16 + schnell.spec.text_length

    tuning = tune.tune(Paced(schnell, fixed_s, row_s))

    assert tuning.batch_tokens // tokens in rows
    assert tuning.threads == 1


def test_measuring_ends_even_for_a_slow_model(schnell, monkeypatch):
    monkeypatch.setattr(tune, "PATIENCE_S", 0.1)
    began = time.monotonic()

    tune.tune(Paced(schnell, 0.15, 0.0))

    assert time.monotonic() - began < 1


@pytest.mark.parametrize("fastest", [1, 2])
def test_the_threads_of_a_cpu_are_those_with_the_fastest_forward(monkeypatch, fastest):
    class Probe:
        def seconds(self, rows):
            return 0.1 if torch.get_num_threads() == fastest else 0.2

    monkeypatch.setattr(tune.os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    before = torch.get_num_threads()
    try:
        assert tune._best_threads(Probe(), time.perf_counter() + 60) == fastest
    finally:
        torch.set_num_threads(before)


def test_a_batch_that_does_not_fit_ends_the_search_and_a_row_that_does_not_is_an_error(schnell):
    class Small(Paced):
        def evaluate(self, x, sigmas, contexts):
            if len(sigmas) > self.rows:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().evaluate(x, sigmas, contexts)

    model = Small(schnell, 0.01, 0.0)
    model.rows = 2
    assert tune.tune(model).batch_tokens == 2 * (16 + schnell.spec.text_length)
    model.rows = 0
    with pytest.raises(LoadError, match="no memory to draw 64x64"):
        Engine(model)
