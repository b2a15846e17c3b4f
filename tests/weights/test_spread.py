"""Weights over several devices: shares that are fair, and inputs that follow."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fluxline.weights.spread import shares, size_of, spread
from tests.cards import Cards, card_of


@given(st.lists(st.integers(0, 1000), max_size=60), st.integers(1, 8))
def test_shares_keep_the_order_and_are_within_the_largest_of_being_equal(sizes, count):
    numbers = shares(sizes, count)
    assert numbers == sorted(numbers)
    assert all(0 <= number < count for number in numbers)
    for number in range(count):
        held = sum(s for s, n in zip(sizes, numbers, strict=True) if n == number)
        assert abs(held - sum(sizes) / count) <= max(sizes, default=0) + 1e-6


class Layer(nn.Module):
    """Notes where it was called, with lists and words among what it reads."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 4))
        self.seen = None

    def forward(self, x, vectors, *, word):
        self.seen = {x.device.type, vectors[0].device.type, self.weight.device.type}
        assert word == "word"
        return x @ self.weight + vectors[0]


def test_what_a_unit_reads_is_carried_to_where_it_is_and_the_last_brings_it_back():
    layers = [Layer() for _ in range(4)]
    spread([layers], [torch.device("meta")])
    x = torch.ones(2, 4, device="cpu")
    for layer in layers:
        x = layer(x, [torch.ones(4)], word="word")
        assert layer.seen == {"meta"}
    assert x.device.type == "meta"


def test_units_lie_where_their_share_is_and_compute_the_same():
    torch.manual_seed(0)
    layers = [nn.Linear(4, 4) for _ in range(4)]
    x = torch.randn(3, 4)
    expected = nn.Sequential(*layers)(x)
    spread([layers], [torch.device("cpu")] * 2)
    assert torch.equal(nn.Sequential(*layers)(x), expected)
    spread([layers], [torch.device("cpu"), torch.device("meta")])
    assert [layer.weight.device.type for layer in layers] == ["cpu", "cpu", "meta", "meta"]


@pytest.mark.parametrize(("chains", "lies_on", "carried"), [((), 0, 6), ((0,), 1, 2)])
def test_what_others_read_comes_back_and_what_the_next_alone_reads_does_not(
    chains, lies_on, carried
):
    layers = [nn.Linear(4, 4) for _ in range(6)]
    cuda = [torch.device("cuda", number) for number in range(2)]
    with Cards() as cards, torch.inference_mode():
        spread([layers], cuda, chains=chains)
        x = torch.randn(3, 4, device=cuda[0])
        cards.carried = 0
        between = nn.Sequential(*layers[:5])(x)
        assert card_of(between) == cuda[lies_on]
        assert card_of(layers[5](between)) == cuda[0]
    assert cards.carried == carried


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two cards")
def test_on_two_cards_the_numbers_are_the_same():
    torch.manual_seed(0)
    layers = [nn.Linear(64, 64) for _ in range(4)]
    x = torch.randn(3, 64)
    expected = nn.Sequential(*layers)(x)
    spread([layers], [torch.device("cuda", 0), torch.device("cuda", 1)])
    drawn = nn.Sequential(*layers)(x.to("cuda:0"))
    assert drawn.device.index == 0
    torch.testing.assert_close(drawn.cpu(), expected)


def test_the_size_of_a_module_counts_what_is_no_parameter_too():
    layer = nn.Linear(4, 4)
    layer.register_buffer("packed", torch.ones(8, dtype=torch.int8))
    assert size_of(layer) == 4 * 20 + 8
