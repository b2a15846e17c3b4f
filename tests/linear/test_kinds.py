"""Every kind gives back about what it was given: how near, for how many bits, and row by row."""

import pytest
import torch

from fluxline.linear.eight_bit import fp8_rows, int8_rows
from fluxline.linear.fp4 import leading, swizzled
from fluxline.linear.kind import Kind
from fluxline.linear.quantized import OWN_KINDS, pack, unpack
from tests.linear.conftest import weight_of

# Relative error of the weight, about 1.1 times what was measured, and bits a weight.
BOUNDS = {
    "int8": (0.010, 8.2),
    "int8-dynamic": (0.010, 8.2),
    "fp8": (0.029, 8.2),
    "nf4": (0.105, 4.5),
    "nf4-double": (0.105, 4.3),
    "hqq4": (0.100, 4.5),
    "fp4": (0.100, 4.7),  # without its low-rank part
}
ROUND_OFF = 1e-6  # float32


def error(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


def bits(fields, weight):
    return 8 * sum(field.nbytes for field in fields.values()) / weight.numel()


def test_every_kind_has_a_bound():
    assert BOUNDS.keys() == OWN_KINDS.keys()


@pytest.fixture(params=BOUNDS)
def kind(request) -> Kind:
    return OWN_KINDS[request.param]


def test_a_weight_comes_back_nearly(kind, weight):
    fields = kind.quantize(weight)

    most_error, most_bits = BOUNDS[kind.name]
    assert 0 < error(kind.dequantize(fields, 256), weight) < most_error
    assert bits(fields, weight) <= most_bits


def test_fields_are_as_foretold(kind, weight):
    foretold, made = kind.empty(*weight.shape), kind.quantize(weight)

    assert foretold.keys() == made.keys()
    for name, field in made.items():
        assert (field.shape, field.dtype) == (foretold[name].shape, foretold[name].dtype), name


def test_rows_do_not_see_each_other(kind, weight):
    whole = kind.quantize(weight)
    alone = kind.quantize(weight[10:30])

    for name, field in alone.items():
        assert torch.equal(field.float(), whole[name][10:30].float()), name


@pytest.mark.parametrize("columns", [1, 48, 200, 257])
def test_a_last_block_need_not_be_full(kind, columns):
    weight = weight_of(8, 256)[:, :columns]

    back = kind.dequantize(kind.quantize(weight), columns)

    assert back.shape == weight.shape
    assert error(back, weight) < 0.16  # fewer values: a block's largest counts for more


def test_rows_of_zeros_and_of_one_value_come_back_whole(kind):
    weight = torch.cat((torch.zeros(1, 128), torch.full((1, 128), 0.5)))

    back = kind.dequantize(kind.quantize(weight), 128)

    assert back[0].abs().max() == 0
    assert error(back[1], weight[1]) < 1e-3


def test_the_product_is_that_of_the_weight_it_stands_for(kind, weight):
    x = torch.randn(2, 5, 256, generator=torch.Generator().manual_seed(1))
    fields = kind.quantize(weight)

    product = kind.multiply(x, fields)

    wanted = x @ kind.dequantize(fields, 256).T
    assert product.shape == (2, 5, 96)
    loose = 0.02 if kind.name == "int8-dynamic" else ROUND_OFF  # which rounds x too
    assert error(product, wanted) < loose


def test_activations_are_rounded_row_by_row(weight):
    kind = OWN_KINDS["int8-dynamic"]
    x = torch.randn(3, 256, generator=torch.Generator().manual_seed(1))
    x[1] *= 1000
    fields = kind.quantize(weight)

    codes, scale = int8_rows(x)
    exact = (codes.long() @ fields["codes"].long().T) * scale[:, None] * fields["scale"]
    assert error(kind.multiply(x, fields), exact) < ROUND_OFF
    assert torch.equal(kind.multiply(x, fields)[:1], kind.multiply(x[:1], fields))


def test_float8_holds_the_largest(weight):
    codes, scale = fp8_rows(1e6 * weight)

    assert torch.isfinite(codes.float()).all()
    assert error(codes.float() * scale[:, None], 1e6 * weight) < BOUNDS["fp8"][0]


def test_the_low_rank_part_takes_out_what_svd_would(weight):
    generator = torch.Generator().manual_seed(2)
    strong = torch.randn(96, 8, generator=generator) @ torch.randn(8, 256, generator=generator)
    weight = weight + 0.05 * strong
    up, down = leading(weight, 32)

    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    best = (left[:, :32] * values[:32]) @ right[:32]
    rest, least = (weight - up.float() @ down.float()).norm(), (weight - best).norm()
    assert rest < 1.02 * least


def test_the_low_rank_part_makes_the_error_smaller(weight):
    fp4 = OWN_KINDS["fp4"]
    with_it = unpack("fp4", pack(fp4, weight), 256)
    without = fp4.dequantize(fp4.quantize(weight), 256)

    assert error(with_it, weight) < 0.8 * error(without, weight)


def test_a_weight_thinner_than_the_rank_is_all_low_rank():
    weight = weight_of(8, 64)

    up, down = leading(weight, 32)

    assert (up.shape, down.shape) == ((8, 32), (32, 64))
    assert error(up.float() @ down.float(), weight) < 0.01  # bfloat16


def test_scales_are_laid_out_as_the_cores_read_them():
    rows, columns = 130, 6
    scale = torch.arange(rows * columns).view(rows, columns) % 100 / 10
    laid = swizzled(scale.to(torch.float8_e4m3fn)).float()

    assert laid.numel() == 256 * 8
    for row, column in ((0, 0), (33, 2), (127, 5), (129, 5)):
        tile = row // 128 * 2 + column // 4
        inside = row % 32 * 16 + row % 128 // 32 * 4 + column % 4
        assert laid[512 * tile + inside] == scale[row, column].to(torch.float8_e4m3fn).float()
