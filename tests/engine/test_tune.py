"""What is measured at start-up, on a model and by a clock whose speed the test decides."""

import math

import pytest
import torch

from fluxline.engine import Engine, tune
from fluxline.engine.build import open_model
from fluxline.engine.placement import place
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


def test_one_row_is_timed_however_many_tokens_it_has(schnell, clock, monkeypatch):
    tokens = 16 + schnell.spec.text_length
    monkeypatch.setattr(tune, "LARGEST_BATCH_TOKENS", tokens - 1)

    tuning = tune.tune(Paced(schnell, clock, 0.01, 0.0))

    assert tuning.batch_tokens == tokens
    assert tuning.seconds_per_token == pytest.approx(0.01 / tokens)


@pytest.fixture
def mini():
    return open_model("mini", "cpu")


def with_room_for(model, monkeypatch, pixels):
    """A model on a device that has room for so many pixels of a picture or of a band at once."""
    decode = model.decode

    def decode_what_fits(x, width, height):
        wanted = len(x) * width * height
        if wanted > model.banded.whole_pixels:
            wanted = min(wanted, model.banded.band_pixels)
        if wanted > pixels:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(x, width, height)

    monkeypatch.setattr(model, "decode", decode_what_fits)


@pytest.mark.parametrize("pixels", [127 * 128, 64 * 64])
def test_a_card_that_decodes_in_bands_alone_is_measured_by_smaller_pictures(
    mini, monkeypatch, pixels
):
    """The second has no room for a half of the picture as a band either."""
    monkeypatch.setattr(mini.banded, "band_pixels", 64 * 64)
    there = tune.tune(mini).footprint
    with_room_for(mini, monkeypatch, pixels)

    with Engine(mini) as engine:
        footprint = engine.models[0].footprint

    assert footprint.pixel_bytes == pytest.approx(there.pixel_bytes, rel=0.1)
    assert footprint.in_bands.kept_bytes == pytest.approx(there.in_bands.kept_bytes, rel=0.2)
    assert footprint.in_bands.band_bytes == pytest.approx(there.in_bands.band_bytes, rel=0.2)


def test_a_card_without_room_for_the_smallest_is_an_error(mini, monkeypatch):
    with_room_for(mini, monkeypatch, 63 * 64)
    with pytest.raises(LoadError, match="no memory to draw"):
        Engine(mini)


@pytest.mark.parametrize("memory", ["offload", "stream"])
@pytest.mark.parametrize("budget_bytes", [100_000, 10**6, 10**9])
def test_what_is_free_is_what_is_left_while_the_most_weights_visit(
    schnell_folder, monkeypatch, memory, budget_bytes
):
    """Some components and some blocks are larger than the budget, and come none the less."""
    model = open_model(str(schnell_folder), "cpu")
    units = [unit for network in model.networks() for unit in network.units]
    weights = [w for unit in units for w in (*unit.parameters(), *unit.buffers())]
    home = {weight: weight.data_ptr() for weight in weights}
    place(model, memory, [model.device], budget_bytes=budget_bytes)
    left = []

    def free(device):
        here = sum(w.nbytes for w, at_home in home.items() if w.data_ptr() != at_home)
        return 10**9 - here

    for unit in units:
        unit.register_forward_pre_hook(lambda *_: left.append(free(None)))
    monkeypatch.setattr(tune, "free_bytes", free)
    footprint = tune.tune(model).footprint
    assert footprint.free_bytes <= tune.USABLE * min(left)
    assert footprint.free_bytes > 0.999 * tune.USABLE * min(left)
