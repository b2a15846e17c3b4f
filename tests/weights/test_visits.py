"""Weights that visit: the same numbers, within the budget, and no more carried than must be."""

import pytest
import torch
from torch import nn

from fluxline.weights.visits import Visits

CPU = torch.device("cpu")
WIDTH = 16
UNIT = 4 * (WIDTH * WIDTH + WIDTH)  # bytes of a linear layer


class Chain(nn.Module):
    """Layers one after another."""

    def __init__(self, length, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(length))

    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x

    def component(self):
        return tuple(self.layers)


@pytest.fixture
def x():
    return torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def run(module, x):
    return module(x)


@pytest.mark.parametrize("units", [1, 2, 3, 7, 8, 100])
def test_whatever_the_budget_the_numbers_are_the_same(x, units):
    expected = run(Chain(8), x)
    chain = Chain(8)
    Visits([chain.component()], CPU, budget_bytes=units * UNIT)
    for _ in range(3):
        assert torch.equal(run(chain, x), expected)


class Watched(nn.Module):
    """Notes at each call how much is visiting, and that its weights are no longer at home."""

    def __init__(self, seen):
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)
        self.home = self.inner.weight.data_ptr()
        self.seen = seen

    def forward(self, x):
        assert self.inner.weight.data_ptr() != self.home
        self.seen.append(self.visits.here_bytes)
        return self.inner(x)


@pytest.mark.parametrize("units", [2, 3, 5])
def test_no_more_than_the_budget_visits_at_once(x, units):
    seen = []
    layers = [Watched(seen) for _ in range(6)]
    visits = Visits([layers], CPU, budget_bytes=units * UNIT)
    for layer in layers:
        layer.visits = visits
    for _ in range(3):
        run(nn.Sequential(*layers), x)
    assert max(seen) == units * UNIT


@pytest.mark.parametrize("units", range(1, 9))
def test_with_room_for_all_but_a_few_only_a_few_are_carried(x, units):
    """Of 8 called in a circle, with room for some and the next one always on its way."""
    chain = Chain(8)
    visits = Visits([chain.component()], CPU, budget_bytes=units * UNIT)
    for _ in range(6):
        run(chain, x)
    before = visits.moved_bytes
    for _ in range(60):
        run(chain, x)
    carried = (visits.moved_bytes - before) / UNIT / 60
    assert carried == pytest.approx(min(8, 8 * (8 - units) / (8 - 2)), abs=0.1)


def test_a_unit_larger_than_the_budget_comes_alone(x):
    chain = Chain(3)
    visits = Visits([chain.component()], CPU, budget_bytes=UNIT // 2)
    run(chain, x)
    assert visits.here_bytes == UNIT


def test_a_component_that_is_not_at_work_leaves_first(x):
    text, body = Chain(2, seed=1), Chain(4, seed=2)
    visits = Visits([text.component(), body.component()], CPU, budget_bytes=5 * UNIT)
    run(text, x)
    run(body, x)
    moved = visits.moved_bytes
    run(body, x)
    assert visits.moved_bytes == moved  # all of it stayed: the text's weights made room
    assert visits.here_bytes == 5 * UNIT  # and one of those is still welcome


def test_together_a_component_comes_and_goes_as_one(x):
    text, body = Chain(2, seed=1), Chain(4, seed=2)
    expected = run(body, run(text, x))
    parts = [text.component(), body.component()]
    visits = Visits(parts, CPU, budget_bytes=4 * UNIT, together=True)
    run(text, x)
    assert visits.here_bytes == 2 * UNIT
    run(body.layers[0], x)
    assert visits.here_bytes == 4 * UNIT
    assert torch.equal(run(body, run(text, x)), expected)


def test_buffers_visit_too(x):
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("packed", torch.ones(WIDTH, WIDTH, dtype=torch.int8))

        def forward(self, x):
            return x @ self.packed.float()

    module = Packed()
    visits = Visits([[module]], CPU, budget_bytes=10**6)
    run(module, x)
    assert visits.here_bytes == WIDTH * WIDTH


@pytest.mark.parametrize("units", [1, 3, 4, 9])
def test_filled_it_takes_all_that_it_will_ever_take(x, units):
    text, body = Chain(2, seed=1), Chain(4, seed=2)
    expected = run(body, run(text, x))
    parts = [text.component(), body.component()]
    visits = Visits(parts, CPU, budget_bytes=units * UNIT)
    visits.fill()
    assert visits.here_bytes == min(units, 4) * UNIT
    for _ in range(2):
        assert torch.equal(run(body, run(text, x)), expected)
    assert visits.here_bytes <= units * UNIT


@pytest.mark.gpu
def test_on_a_card_the_numbers_are_the_same_and_homes_are_pinned(x):
    expected = run(Chain(8).cuda(), x.cuda())
    chain = Chain(8)
    visits = Visits([chain.component()], torch.device("cuda"), budget_bytes=3 * UNIT)
    for _ in range(20):
        assert torch.equal(run(chain, x.cuda()), expected)
    assert chain.layers[0].weight.is_pinned() or visits.here_bytes
