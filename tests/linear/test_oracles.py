"""Ours beside libraries that we did not write: the same numbers, or errors no larger."""

import warnings

import numpy as np
import pytest
import torch

from fluxline.linear.gguf import GGUF_KINDS
from fluxline.linear.quantized import OWN_KINDS, pack, unpack

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torchao and bitsandbytes speak of what this machine lacks
    import bitsandbytes.functional as bnb
    import gguf
    from diffusers.quantizers.gguf.utils import dequantize_functions
    from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, per_tensor_amax_to_scale
    from torchao.quantization import (
        Float8WeightOnlyConfig,
        Int8DynamicActivationInt8WeightConfig,
        Int8WeightOnlyConfig,
        quantize_,
    )

HALVES = {  # at which bytes of a block its float16 numbers begin
    "Q8_0": [0], "Q4_0": [0], "Q5_0": [0], "Q4_1": [0, 2], "Q5_1": [0, 2],
    "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
}  # fmt: skip


def error(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


def theirs(weight, config):
    """torchao's layer of a weight."""
    layer = torch.nn.Linear(weight.shape[1], len(weight), bias=False)
    layer.weight.data.copy_(weight)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantize_(layer, config)
    return layer


def test_int8_is_as_near_as_torchaos(weight):
    ours = unpack("int8", pack(OWN_KINDS["int8"], weight), 256)
    other = theirs(weight, Int8WeightOnlyConfig()).weight.dequantize()

    assert error(ours, weight) <= 1.02 * error(other, weight)
    assert error(ours, other) < 0.01


@pytest.mark.filterwarnings("ignore")
def test_int8_products_are_torchaos(weight):
    x = torch.randn(20, 256, generator=torch.Generator().manual_seed(1))
    kind = OWN_KINDS["int8-dynamic"]
    ours = kind.multiply(x, kind.quantize(weight))
    other = theirs(weight, Int8DynamicActivationInt8WeightConfig())(x)

    exact = x @ weight.T
    assert error(ours, exact) <= 1.02 * error(other, exact)


def test_float8_is_torchaos_by_rows(weight):
    fields = OWN_KINDS["fp8"].quantize(weight)
    product = torch._scaled_mm(
        torch.eye(256).to(torch.float8_e4m3fn),
        fields["codes"].t(),
        scale_a=torch.ones(256, 1),
        scale_b=fields["scale"][None],
        out_dtype=torch.float32,
    )
    assert torch.equal(product.T, OWN_KINDS["fp8"].dequantize(fields, 256))

    whole = theirs(weight, Float8WeightOnlyConfig()).weight.dequantize()
    assert error(unpack("fp8", fields, 256), weight) <= 1.02 * error(whole, weight)


def test_nf4_is_bitsandbytes(weight):
    packed, state = bnb.quantize_nf4(weight, blocksize=64, compress_statistics=False)

    ours = unpack("nf4", pack(OWN_KINDS["nf4"], weight), 256)

    torch.testing.assert_close(ours, bnb.dequantize_nf4(packed, state), rtol=1e-6, atol=1e-7)


def test_doubly_quantized_nf4_is_as_near_as_bitsandbytes(weight):
    packed, state = bnb.quantize_nf4(weight, blocksize=64, compress_statistics=True)

    ours = unpack("nf4-double", pack(OWN_KINDS["nf4-double"], weight), 256)

    assert error(ours, weight) <= 1.01 * error(bnb.dequantize_nf4(packed, state), weight)


def test_nvfp4_is_torchaos(weight):
    """Theirs scales a whole matrix once, ours each row: so row by row they are the same."""
    fp4 = OWN_KINDS["fp4"]
    for row in weight[:20].split(1):
        scale = per_tensor_amax_to_scale(row.abs().amax())
        other = NVFP4Tensor.to_nvfp4(row, per_tensor_scale=scale).dequantize(torch.float32)
        torch.testing.assert_close(fp4.dequantize(fp4.quantize(row), 256), other)


@pytest.mark.parametrize("name", GGUF_KINDS)
def test_blocks_mean_what_ggufs_own_package_says(name):
    """Of random bytes, so that every bit of a block counts."""
    kind = GGUF_KINDS[name]
    raw = np.random.default_rng(0).integers(0, 256, (6, 3 * kind.bytes), dtype=np.uint8)
    for block in range(3):
        for at in HALVES[name]:
            raw[:, block * kind.bytes + at + 1] &= 0x3B  # a float16 that is no NaN

    ours = kind.dequantize({"blocks": torch.from_numpy(raw)}, 3 * kind.size)

    quant_type = gguf.GGMLQuantizationType[name]
    assert np.array_equal(ours.numpy(), gguf.quants.dequantize(raw, quant_type))
    decode = dequantize_functions[quant_type]
    halves = decode(torch.from_numpy(raw).view(-1, kind.bytes), kind.size, kind.bytes)
    torch.testing.assert_close(halves.float().view(6, -1), ours, rtol=4e-3, atol=4e-3)


def test_hqq_beats_rounding_to_the_nearest(weight):
    """By the norm that it makes small: few errors, and those that are left may be large."""
    blocks = weight.view(96, 4, 64)
    low, high = blocks.amin(2, keepdim=True), blocks.amax(2, keepdim=True)
    step = (high - low) / 15
    rounded = ((blocks - low) / step).round() * step + low
    ours = unpack("hqq4", pack(OWN_KINDS["hqq4"], weight), 256)

    def norm(found):
        return float((found.reshape(96, 256) - weight).abs().pow(0.7).mean())

    assert norm(ours) < norm(rounded)
