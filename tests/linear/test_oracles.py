"""Ours beside libraries that we did not write: the same numbers, or errors no larger."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from diffusers.quantizers.gguf.utils import dequantize_functions
from safetensors.torch import load_file, save_file

from fluxline.linear.gguf import GGUF_KINDS
from fluxline.linear.quantized import OWN_KINDS, pack, unpack
from tests.linear.conftest import weight_of

HERE = Path(__file__).parent / "oracles"
HALVES = {  # at which bytes of a block its float16 numbers begin
    "Q8_0": [0], "Q4_0": [0], "Q5_0": [0], "Q4_1": [0, 2], "Q5_1": [0, 2],
    "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
}  # fmt: skip


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


@pytest.fixture(scope="module")
def asked():
    x = torch.randn(20, 256, generator=torch.Generator().manual_seed(1))
    return {"weight": weight_of(96, 256), "x": x}


@pytest.fixture(scope="module")
def theirs(asked, pytestconfig, tmp_path_factory):
    """What the libraries answer, from an environment of their own."""
    lock = HERE / "requirements.txt"
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()[:12]
    home = pytestconfig.cache.mkdir(f"oracles-{digest}")
    if not (home / "installed").exists():
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps"]
        subprocess.run([*pip, "--target", home / "lib", "-r", lock], check=True)
        (home / "installed").touch()
    folder = tmp_path_factory.mktemp("oracles")
    save_file(asked, folder / "question.safetensors")
    ran = subprocess.run(
        [sys.executable, HERE / "answers.py", folder],
        env={**os.environ, "PYTHONPATH": str(home / "lib")},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    return load_file(folder / "answer.safetensors")


def error(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


def back(kind, weight):
    return unpack(kind, pack(OWN_KINDS[kind], weight), weight.shape[1])


installs = [pytest.mark.slow, pytest.mark.timeout(600)]  # the first run installs


class TestOfLibraries:
    pytestmark = installs

    def test_int8_is_as_near_as_torchaos(self, asked, theirs):
        weight, other = asked["weight"], theirs["torchao int8"]

        assert error(back("int8", weight), weight) <= 1.02 * error(other, weight)
        assert error(back("int8", weight), other) < 0.01

    def test_int8_products_are_as_near_as_torchaos(self, asked, theirs):
        kind, (weight, x) = OWN_KINDS["int8-dynamic"], asked.values()
        product, exact = kind.multiply(x, kind.quantize(weight)), x @ weight.T

        assert error(product, exact) <= 1.02 * error(theirs["torchao int8 product"], exact)

    def test_float8_by_rows_is_as_near_as_torchaos_by_matrices(self, asked, theirs):
        weight = asked["weight"]

        assert error(back("fp8", weight), weight) <= 1.02 * error(theirs["torchao float8"], weight)

    def test_nf4_is_bitsandbytes(self, asked, theirs):
        ours = back("nf4", asked["weight"])

        torch.testing.assert_close(ours, theirs["bitsandbytes nf4"], rtol=1e-6, atol=1e-7)

    def test_doubly_quantized_nf4_is_as_near_as_bitsandbytes(self, asked, theirs):
        weight, other = asked["weight"], theirs["bitsandbytes nf4, double"]

        assert error(back("nf4-double", weight), weight) <= 1.01 * error(other, weight)

    def test_nvfp4_is_torchaos(self, asked, theirs):
        fp4 = OWN_KINDS["fp4"]

        ours = fp4.dequantize(fp4.quantize(asked["weight"]), 256)

        torch.testing.assert_close(ours, theirs["torchao nvfp4, row by row"])

    def test_hqq_is_as_near_as_its_authors(self, asked, theirs):
        """In the mean, which chooses among the zeros; squares are not what it makes small."""
        weight, other = asked["weight"], theirs["hqq"]
        ours = back("hqq4", weight)

        assert (ours - weight).abs().mean() <= 1.01 * (other - weight).abs().mean()
        assert error(ours, weight) <= 1.05 * error(other, weight)


def test_a_float8_product_is_the_backends(asked):
    """The layout of codes and scales is what torch's product of float8 takes, on a CPU as well."""
    fields = OWN_KINDS["fp8"].quantize(asked["weight"])

    product = torch._scaled_mm(
        torch.eye(256).to(torch.float8_e4m3fn),
        fields["codes"].t(),
        scale_a=torch.ones(256, 1),
        scale_b=fields["scale"][None],
        out_dtype=torch.float32,
    )

    assert torch.equal(product.T, OWN_KINDS["fp8"].dequantize(fields, 256))


def test_hqq_beats_rounding_to_the_nearest(asked):
    """By the norm that it makes small: few errors, and those that are left may be large."""
    weight = asked["weight"]
    blocks = weight.view(96, 4, 64)
    low, high = blocks.amin(2, keepdim=True), blocks.amax(2, keepdim=True)
    step = (high - low) / 15
    rounded = ((blocks - low) / step).round() * step + low

    def norm(found):
        return float((found.reshape(96, 256) - weight).abs().pow(0.7).mean())

    assert norm(back("hqq4", weight)) < norm(rounded)
