"""What is measured at start-up, on a model whose speed the test decides."""

import time

import pytest
import torch

from fluxline.engine import tune


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
    [(0.0, 0.02, {1, 2}), (0.1, 0.0, {32, 64, 128})],
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


def test_the_threads_of_a_cpu_are_those_with_the_fastest_forward(schnell):
    before = torch.get_num_threads()
    try:
        tuning = tune.tune(schnell)
        assert torch.get_num_threads() == tuning.threads
        assert tuning.seconds_per_token > 0
    finally:
        torch.set_num_threads(before)
