"""Side branches: any mixture of adapters in one forward, and nothing where there is none."""

import pytest
import torch
from torch import nn

from fluxline.linear.lora import Adapted, Adapter, AdapterBank
from fluxline.linear.quantized import OWN_KINDS, QuantizedLinear
from fluxline.ops.adapter import Kronecker

ROWS, TOKENS, WIDTH, HEIGHT = 4, 3, 10, 12


class Doubling(nn.Module):
    """A layer that is no nn.Linear and has no weight."""

    in_features, out_features = WIDTH, WIDTH

    def forward(self, x):
        return 2 * x


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "a": nn.Linear(WIDTH, HEIGHT),
            "b": nn.Sequential(nn.Linear(WIDTH, HEIGHT)),
            "c": Doubling(),
        }
    )


def adapter(digest, *, rank=2, **layers):
    """layers: name -> (first row, rows)."""
    g = torch.Generator().manual_seed(sum(map(ord, digest)))
    parts = {
        f"net.{name.replace('_', '.')}": [
            (row, torch.randn(rank, WIDTH, generator=g), torch.randn(rows, rank, generator=g))
        ]
        for name, (row, rows) in layers.items()
    }
    return Adapter(digest=digest, parts=parts)


def delta(adapter, name, height):
    """The matrix that an adapter stands for."""
    whole = torch.zeros(height, WIDTH)
    for part in adapter.parts.get(name, ()):
        if isinstance(part, Kronecker):
            for rows, row in part.places:
                own = torch.kron(*part.left, *part.right)[slice(*rows)]
                whole[row : row + len(own)] += own
        else:
            row, down, up = part
            whole[row : row + len(up)] += up @ down
    return whole


@torch.inference_mode()
def test_every_row_is_drawn_with_its_own_mixture(network):
    x = torch.randn(ROWS, TOKENS, WIDTH)
    one, two = adapter("one", a=(0, HEIGHT)), adapter("two", rank=5, a=(4, 3))
    mixes = [(), ((one, 1.0),), ((two, -0.5),), ((two, 2.0), (one, 0.3))]
    bank = AdapterBank({"net": network})

    with bank.rows(mixes):
        y = network["a"](x)

    base = nn.functional.linear(x, network["a"].weight, network["a"].base.bias)
    for row, mix in enumerate(mixes):
        change = sum(
            (strength * delta(worn, "net.a", HEIGHT) for worn, strength in mix),
            torch.zeros(HEIGHT, WIDTH),
        )
        torch.testing.assert_close(y[row], base[row] + x[row] @ change.T)


@torch.inference_mode()
def test_a_row_without_adapters_is_untouched_by_its_neighbours(network):
    x = torch.randn(ROWS, TOKENS, WIDTH)
    plain = network["a"](x)
    bank = AdapterBank({"net": network})

    with bank.rows([(), ((adapter("one", a=(0, HEIGHT)), 3.0),), (), ()]):
        y = network["a"](x)

    assert torch.equal(y[[0, 2, 3]], plain[[0, 2, 3]])
    assert not torch.equal(y[1], plain[1])


def product(digest, row, rows):
    """An adapter with some rows of a Kronecker product beside layer a."""
    g = torch.Generator().manual_seed(sum(map(ord, digest)))
    left, right = torch.randn(3, 5, generator=g), torch.randn(4, WIDTH // 5, generator=g)
    own = Kronecker((left,), (right,), ((rows, row),))
    return Adapter(digest=digest, parts={"net.a": [own]})


@torch.inference_mode()
@pytest.mark.parametrize("strength", [0.4, 0.0])
def test_products_act_on_their_own_rows_beside_pairs(network, strength):
    x = torch.randn(ROWS, TOKENS, WIDTH)
    plain = network["a"](x)
    whole, some = product("whole", 0, (0, HEIGHT)), product("some", 4, (3, 8))
    pair = adapter("pair", a=(0, HEIGHT))
    mixes = [((whole, 1.0),), (), ((some, strength), (pair, 0.3), (whole, -2.0)), ((pair, 1.0),)]
    bank = AdapterBank({"net": network})

    with bank.rows(mixes):
        y = network["a"](x)
        assert bank.bytes == sum(one.bytes for one in (whole, some, pair))

    assert torch.equal(y[1], plain[1])
    for row, mix in enumerate(mixes):
        change = sum(
            (strength * delta(worn, "net.a", HEIGHT) for worn, strength in mix),
            torch.zeros(HEIGHT, WIDTH),
        )
        torch.testing.assert_close(y[row], plain[row] + x[row] @ change.T)


@torch.inference_mode()
def test_a_product_in_one_mix_acts_on_every_row(network):
    one = product("one", 0, (0, HEIGHT))
    x = torch.randn(5, WIDTH)
    plain = network["a"](x)

    with AdapterBank({"net": network}).rows([((one, 0.5),)]):
        y = network["a"](x)

    torch.testing.assert_close(y, plain + 0.5 * x @ delta(one, "net.a", HEIGHT).T)


@torch.inference_mode()
def test_one_mix_is_every_rows(network):
    one = adapter("one", a=(0, HEIGHT))
    bank = AdapterBank({"net": network})
    x = torch.randn(5, WIDTH)

    with bank.rows([((one, 0.5),)]):
        y = network["a"](x)

    expected = network["a"](x) + 0.5 * x @ delta(one, "net.a", HEIGHT).T
    torch.testing.assert_close(y, expected)


def test_layers_that_no_adapter_is_for_are_never_touched(network):
    before = dict(network.named_modules())
    bank = AdapterBank({"net": network})

    with bank.rows([()]):
        assert dict(network.named_modules()) == before
    with bank.rows([((adapter("one", b_0=(0, HEIGHT)), 1.0),)]):
        assert isinstance(network["b"][0], Adapted)
        assert network["a"] is before["a"]


@torch.inference_mode()
def test_outside_of_a_forward_nothing_acts_and_detaching_leaves_no_trace(network):
    before = dict(network.named_modules())
    x = torch.randn(2, WIDTH)
    plain = network["a"](x)
    bank = AdapterBank({"net": network})

    with bank.rows([((adapter("one", a=(0, HEIGHT)), 1.0),)]):
        pass

    assert torch.equal(network["a"](x), plain)
    bank.detach()
    assert dict(network.named_modules()) == before


@torch.inference_mode()
def test_a_layer_needs_no_weight_of_its_own(network):
    one = adapter("one", c=(0, WIDTH))
    bank = AdapterBank({"net": network})
    x = torch.randn(1, TOKENS, WIDTH)

    with bank.rows([((one, 1.0),)]):
        y = network["c"](x)

    torch.testing.assert_close(y, 2 * x + x @ delta(one, "net.c", WIDTH).T)


@torch.inference_mode()
def test_an_adapter_that_changes_is_seen_at_the_next_forward(network):
    bank = AdapterBank({"net": network})
    x = torch.randn(1, TOKENS, WIDTH)
    answers = []
    for worn in (adapter("one", a=(0, HEIGHT)), adapter("two", a=(0, HEIGHT))):
        for strength in (1.0, 0.5):
            with bank.rows([((worn, strength),)]):
                answers.append(network["a"](x))

    assert len({answer.sum().item() for answer in answers}) == 4


@torch.inference_mode()
@pytest.mark.parametrize("kind", OWN_KINDS)
def test_beside_a_quantized_layer_the_same_is_added(kind):
    weight = torch.randn(HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    base = QuantizedLinear(OWN_KINDS[kind], nn.Linear(WIDTH, HEIGHT))
    base.take_rows(0, weight)
    network, one = nn.ModuleDict({"a": base}), adapter("one", a=(0, HEIGHT))
    x = torch.randn(ROWS, TOKENS, WIDTH)
    bank = AdapterBank({"net": network})

    with bank.rows([((one, 0.7),)] * ROWS):
        added = network["a"](x) - base(x)

    torch.testing.assert_close(added, 0.7 * x @ delta(one, "net.a", HEIGHT).T, rtol=1e-4, atol=1e-4)


def held(*adapters):
    """Bytes of adapters side by side at layer a: every one of rank 2, A and the padded B."""
    return sum(2 * (WIDTH + HEIGHT) * 4 for _ in adapters)


@torch.inference_mode()
def run(bank, network, *mixes):
    with bank.rows(mixes):
        return network["a"](torch.ones(len(mixes), TOKENS, WIDTH))


def test_what_lies_on_the_device_is_bounded_but_for_what_acts(network):
    one, two, three = (adapter(name, a=(0, HEIGHT)) for name in ("one", "two", "three"))
    bank = AdapterBank({"net": network}, limit_bytes=held(one, two))

    run(bank, network, ((one, 1.0),))
    run(bank, network, ((two, 1.0),))
    assert bank.bytes == held(one, two)
    run(bank, network, ((three, 1.0),))
    assert bank.bytes == held(two, three)
    run(bank, network, ((one, 1.0),), ((two, 1.0),), ((three, 1.0),))
    assert bank.bytes == held(one, two, three), "more than it may, but all of it acts"
    run(bank, network, ((one, 1.0),))
    assert bank.bytes == held(one)


def test_what_is_no_longer_worn_is_let_go(network):
    one, two = adapter("one", a=(0, HEIGHT)), adapter("two", a=(0, HEIGHT))
    bank = AdapterBank({"net": network})
    run(bank, network, ((one, 1.0),))
    before = run(bank, network, ((one, 1.0),), ((two, 1.0),))

    bank.keep({one})
    assert bank.bytes == held(one)
    assert bank.forget()
    assert bank.bytes == 0
    assert not bank.forget(), "nothing was there"
    assert torch.equal(run(bank, network, ((one, 1.0),), ((two, 1.0),)), before)


def test_a_mixture_that_comes_again_is_not_laid_out_again(network):
    one, two = adapter("one", a=(0, HEIGHT)), adapter("two", a=(0, HEIGHT))
    bank = AdapterBank({"net": network})
    for _ in range(3):
        run(bank, network, ((one, 1.0),))
        run(bank, network, ((two, 0.5),))
    assert bank.bytes == held(one, two)
