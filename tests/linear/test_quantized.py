"""A quantized layer takes its weight in parts and computes what its kind says."""

import pytest
import torch
from torch import nn

from fluxline.errors import LoadError
from fluxline.linear.quantized import KINDS, OWN_KINDS, QuantizedLinear, pack, unpack
from tests.linear.conftest import weight_of


def layer_of(kind, weight, starts=(0,), *, bias=True):
    like = nn.Linear(weight.shape[1], len(weight), bias=bias)
    layer = QuantizedLinear(OWN_KINDS[kind], like, starts)
    for start, end in zip(starts, (*starts[1:], len(weight)), strict=True):
        layer.take_rows(start, weight[start:end])
    return layer


@pytest.mark.parametrize("kind", OWN_KINDS)
def test_it_stands_in_for_a_linear_layer(kind):
    weight = weight_of(128, 256)
    layer = layer_of(kind, weight)
    x = torch.randn(2, 3, 256, generator=torch.Generator().manual_seed(1))

    y = layer(x)

    exact = x @ weight.T + layer.bias
    assert (layer.in_features, layer.out_features) == (256, 128)
    assert y.shape == (2, 3, 128)
    assert (y - exact).norm() < 0.12 * exact.norm()
    if kind != "int8-dynamic":  # which rounds x too
        wanted = x @ layer.dequantized().T + layer.bias
        torch.testing.assert_close(y, wanted, rtol=1e-4, atol=1e-4)


def test_without_a_bias_it_has_none():
    layer = layer_of("int8", weight_of(8, 16), bias=False)

    assert layer.bias is None
    assert layer(torch.zeros(1, 16)).abs().max() == 0


@pytest.mark.parametrize("kind", OWN_KINDS)
def test_of_nothing_it_makes_nothing(kind):
    layer = layer_of(kind, weight_of(128, 256))

    assert layer(torch.zeros(2, 0, 256)).shape == (2, 0, 128)


@pytest.mark.parametrize("kind", OWN_KINDS)
def test_parts_may_come_in_any_order(kind):
    weight, starts = weight_of(96, 128), (0, 32, 64)
    in_order = layer_of(kind, weight, starts)
    other = QuantizedLinear(OWN_KINDS[kind], nn.Linear(128, 96), starts)
    for start in (64, 0, 32):
        other.take_rows(start, weight[start : start + 32])

    assert torch.equal(other.dequantized(), in_order.dequantized())


def test_each_part_has_its_own_low_rank_part():
    weight, starts = weight_of(192, 256), (0, 64, 128)
    layer = layer_of("fp4", weight, starts)

    for start in starts:
        part = weight[start : start + 64]
        alone = unpack("fp4", pack(OWN_KINDS["fp4"], part), 256)
        torch.testing.assert_close(layer.dequantized()[start : start + 64], alone)


@pytest.mark.parametrize("kind", KINDS)
def test_on_the_meta_device_it_takes_no_memory(kind):
    with torch.device("meta"):
        like = nn.Linear(256, 64)
    layer = QuantizedLinear(KINDS[kind], like)

    assert {buffer.device.type for buffer in layer.buffers()} == {"meta"}
    assert sum(p.numel() for p in layer.parameters()) == 64  # the bias
    layer.to_empty(device="cpu")
    dense = 4 * 256 * 64
    assert sum(b.nbytes for b in layer.buffers()) < 0.9 * dense


@pytest.mark.parametrize("kind", OWN_KINDS)
def test_what_was_packed_before_is_taken_as_it_is(kind):
    weight = weight_of(64, 128)
    layer, other = layer_of(kind, weight), QuantizedLinear(OWN_KINDS[kind], nn.Linear(128, 64))

    other.take_packed(0, pack(OWN_KINDS[kind], weight))

    assert torch.equal(other.dequantized(), layer.dequantized())


def test_it_computes_in_the_dtype_of_what_comes():
    for kind in OWN_KINDS:
        layer = layer_of(kind, weight_of(64, 128), bias=False)
        assert layer(torch.ones(1, 128, dtype=torch.bfloat16)).dtype == torch.bfloat16, kind


def test_a_kind_that_nobody_knows_is_told_with_those_there_are():
    with pytest.raises(LoadError, match=r"IQ4_NL.*Q4_K"):
        unpack("IQ4_NL", {}, 256)
