"""On a card: the products that it has in fewer bits are the sums that they stand for."""

import pytest
import torch

from fluxline.linear.eight_bit import Int8Dynamic, fp8_product, fp8_rows
from fluxline.linear.fp4 import Fp4, fp4_product
from fluxline.linear.quantized import OWN_KINDS
from tests.linear.conftest import weight_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
BFLOAT16 = 0.01  # what a product loses that comes out in it


def since(major, minor):
    able = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (major, minor)
    return pytest.mark.skipif(not able, reason=f"needs compute capability {major}.{minor}")


@pytest.fixture
def x():
    return torch.randn(40, 256, generator=torch.Generator().manual_seed(1)).cuda()


def error(found, wanted):
    return float((found.float() - wanted).norm() / wanted.norm())


@since(8, 9)
def test_a_float8_product_is_that_of_the_rounded_numbers(x):
    kind = OWN_KINDS["fp8"]
    fields = kind.quantize(weight_of(96, 256).cuda())

    codes, scale = fp8_rows(x)
    wanted = (codes.float() * scale[:, None]) @ kind.dequantize(fields, 256).T
    assert kind.is_native(x.device, 96, 256)
    assert error(fp8_product(x, fields), wanted) < BFLOAT16


@pytest.mark.parametrize("rows", [1, 17, 40])
def test_an_int8_product_is_that_of_the_cpu(x, rows):
    kind = Int8Dynamic()
    fields = kind.quantize(weight_of(96, 256))
    on_card = {name: field.cuda() for name, field in fields.items()}

    wanted = kind.multiply(x[:rows].cpu(), fields)
    assert kind.is_native(x.device, 96, 256)
    assert error(kind.multiply(x[:rows], on_card).cpu(), wanted) < 1e-4


@since(10, 0)
def test_a_four_bit_product_is_that_of_the_rounded_numbers(x):
    kind = Fp4()
    fields, rows = kind.quantize(weight_of(96, 256).cuda()), kind.quantize(x)

    wanted = kind.dequantize(rows, 256) @ kind.dequantize(fields, 256).T
    assert kind.is_native(x.device, 96, 256)
    assert error(fp4_product(rows, fields), wanted) < BFLOAT16


@pytest.mark.parametrize("kind", OWN_KINDS)
def test_a_card_quantizes_as_a_cpu_does(kind):
    weight = weight_of(96, 256)
    kind = OWN_KINDS[kind]

    here, there = kind.quantize(weight), kind.quantize(weight.cuda())

    back = kind.dequantize(there, 256).cpu()
    assert error(back, kind.dequantize(here, 256)) < 0.01  # a value between two codes may fall
