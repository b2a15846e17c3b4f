"""NVFP4: four-bit floats in blocks of 16, for the tensor cores since Blackwell.

Sixteen values share a scale in float8, and a row shares one in float32. What is largest in a
weight is taken out before, as a product of two thin matrices that stay as they are: the rest has
fewer outliers. Source: Li et al. 2024, "SVDQuant", without its smoothing, which needs calibration.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from fluxline.linear.kind import TINY, Fields, Kind, blocks, count, looked_up, nearest, packed

BLOCK = 16
POSITIVE = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # e2m1
E2M1 = POSITIVE + tuple(-value for value in POSITIVE)  # the fourth bit is the sign
MOST = POSITIVE[-1]
SCALE = torch.float8_e4m3fn
SCALE_MOST = torch.finfo(SCALE).max

OVERSAMPLED = 8
POWER_STEPS = 4


class Fp4(Kind):
    """NVFP4 weights, and activations where the card multiplies them; rank 32 beside."""

    name = "fp4"
    rank = 32

    def empty(self, rows: int, columns: int) -> Fields:
        """4.5 bits a weight, and a float32 a row."""
        many = count(columns, BLOCK)
        return {
            "codes": torch.empty(rows, many * BLOCK // 2, dtype=torch.uint8),
            "scale": torch.empty(rows, many, dtype=SCALE),
            "whole": torch.empty(rows),
        }

    def quantize(self, weight: Tensor) -> Fields:
        """Scale rows so that the scales of blocks fit float8, then blocks so that values fit."""
        cut = blocks(weight, BLOCK)  # (rows, B, 16)
        largest = cut.abs().amax(2)
        whole = largest.amax(1).clamp(min=TINY) / (MOST * SCALE_MOST)
        scale = (largest / MOST / whole[:, None]).clamp(max=SCALE_MOST).to(SCALE)
        step = scale.float() * whole[:, None]
        scaled = cut / step.clamp(min=TINY)[..., None]
        codes = nearest(scaled.abs(), POSITIVE) | (scaled < 0).to(torch.uint8) << 3
        return {"codes": packed(codes.flatten(1)), "scale": scale, "whole": whole}

    def dequantize(self, fields: Fields, columns: int) -> Tensor:
        """Value x scale of its block x scale of its row."""
        values = blocks(looked_up(fields["codes"], E2M1), BLOCK)
        step = fields["scale"].float() * fields["whole"][:, None]
        return (values * step[..., None]).flatten(1)[:, :columns]

    def multiply(self, x: Tensor, fields: Fields) -> Tensor:
        """One product of four-bit floats where there is one, else with the weights as x is."""
        if not self.is_native(x.device, len(fields["codes"]), x.shape[-1]):
            return super().multiply(x, fields)
        product = fp4_product(self.quantize(x.flatten(0, -2).float()), fields)
        return product.to(x.dtype).view(*x.shape[:-1], -1)

    def is_native(self, device: torch.device, rows: int, columns: int) -> bool:
        """On cards since Blackwell."""
        is_able = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (10, 0)
        return is_able and rows % 16 == columns % 32 == 0


def fp4_product(x: Fields, weight: Fields) -> Tensor:
    """x times the transposed weight, both in four bits: (rows of x, rows of weight) float32."""
    product = torch._scaled_mm(
        x["codes"].view(torch.float4_e2m1fn_x2),
        weight["codes"].view(torch.float4_e2m1fn_x2).t(),
        scale_a=swizzled(x["scale"]),
        scale_b=swizzled(weight["scale"]),
        out_dtype=torch.bfloat16,
    )
    return product.float() * x["whole"][:, None] * weight["whole"]


def swizzled(scale: Tensor) -> Tensor:
    """Scales (rows, B) in the order that the tensor cores read them: tiles of 128 x 4.

    Source: NVIDIA, cuBLAS documentation, "1D Block Scaling Factors Layout".
    """
    rows, many = scale.shape
    whole = F.pad(scale.view(torch.uint8), (0, -many % 4, 0, -rows % 128))
    order = "(rt four r) (ct c) -> (rt ct r four c)"
    return rearrange(whole, order, four=4, r=32, c=4).view(SCALE)


def leading(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The part of a weight (rows, columns) with its largest singular values.

    Returns up (rows, rank) and down (rank, columns) in bfloat16, whose product it is; the same for
    the same weight. Source: Halko et al. 2011, "Finding structure with randomness".
    """
    generator = torch.Generator().manual_seed(0)
    probes = torch.randn(weight.shape[1], rank + OVERSAMPLED, generator=generator)
    basis = torch.linalg.qr(weight @ probes.to(weight.device)).Q
    for _ in range(POWER_STEPS):
        basis = torch.linalg.qr(weight @ (weight.T @ basis)).Q
    left, values, right = torch.linalg.svd(basis.T @ weight, full_matrices=False)
    root = values[:rank].sqrt()
    up = (basis @ left[:, :rank]) * root
    down = root[:, None] * right[:rank]
    short = rank - len(root)  # of a matrix thinner than that
    whole = F.pad(up, (0, short)), F.pad(down, (0, 0, 0, short))
    return whole[0].bfloat16().contiguous(), whole[1].bfloat16().contiguous()
