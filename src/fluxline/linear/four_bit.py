"""Half a byte a weight: NF4, which expects a normal distribution, and HQQ, which fits its zero."""

import torch
from torch import Tensor

from fluxline.linear.kind import (
    TINY,
    Fields,
    Kind,
    blocks,
    count,
    looked_up,
    nearest,
    packed,
)

BLOCK = 64

# Quantiles of the standard normal distribution, 0 among them, scaled to [-1, 1].
# Source: Dettmers et al. 2023, "QLoRA", appendix E.
NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
FIFTEEN = tuple(float(code) for code in range(16))

# Of the half-quadratic solver. Source: Badri and Shaji 2023, "Half-Quadratic Quantization".
HQQ_STEPS = 20
HQQ_NORM = 0.7
HQQ_BETA = 10.0
HQQ_KAPPA = 1.01


class Nf4(Kind):
    """NF4 in blocks of 64, each with its largest value in float32."""

    name = "nf4"

    def empty(self, rows: int, columns: int) -> Fields:
        """4.5 bits a weight."""
        many = count(columns, BLOCK)
        codes = torch.empty(rows, many * BLOCK // 2, dtype=torch.uint8)
        return {"codes": codes, "largest": torch.empty(rows, many)}

    def quantize(self, weight: Tensor) -> Fields:
        """Take the nearest of sixteen values, block by block."""
        cut = blocks(weight, BLOCK)  # (rows, B, 64)
        return self._coded(cut, cut.abs().amax(2))

    def dequantize(self, fields: Fields, columns: int) -> Tensor:
        """Table entry x largest of its block."""
        values = blocks(looked_up(fields["codes"], NF4), BLOCK)
        return (values * self._largest(fields)[..., None]).flatten(1)[:, :columns]

    def _coded(self, cut: Tensor, largest: Tensor) -> Fields:
        scaled = (cut / largest.clamp(min=TINY)[..., None]).flatten(1)
        return {"codes": packed(nearest(scaled, NF4)), "largest": largest}

    def _largest(self, fields: Fields) -> Tensor:
        return fields["largest"]


class Nf4Double(Nf4):
    """NF4 whose blocks' largest values are bytes in their turn, of the row's largest."""

    name = "nf4-double"

    def empty(self, rows: int, columns: int) -> Fields:
        """4.1 bits a weight, and a float32 a row."""
        fields = super().empty(rows, columns)
        fields["largest"] = torch.empty_like(fields["largest"], dtype=torch.uint8)
        return {**fields, "scale": torch.empty(rows)}

    def quantize(self, weight: Tensor) -> Fields:
        """Round the scales first: what they lost is made up for in the codes."""
        cut = blocks(weight, BLOCK)
        largest = cut.abs().amax(2)
        scale = largest.amax(1).clamp(min=TINY) / 255
        rounded = (largest / scale[:, None]).round()
        fields = self._coded(cut, rounded * scale[:, None])
        return {**fields, "largest": rounded.to(torch.uint8), "scale": scale}

    def _largest(self, fields: Fields) -> Tensor:
        return fields["largest"].float() * fields["scale"][:, None]


class Hqq4(Kind):
    """Sixteen even steps in blocks of 64, whose zero is chosen for few large errors."""

    name = "hqq4"

    def empty(self, rows: int, columns: int) -> Fields:
        """4.5 bits a weight."""
        many = count(columns, BLOCK)
        codes = torch.empty(rows, many * BLOCK // 2, dtype=torch.uint8)
        half = torch.empty(rows, many, dtype=torch.float16)
        return {"codes": codes, "step": half, "zero": torch.empty_like(half)}

    def quantize(self, weight: Tensor) -> Fields:
        """Alternate between the errors one would forgive and the zero that leaves the fewest."""
        cut = blocks(weight, BLOCK)
        low = cut.amin(2, keepdim=True).clamp(max=0)  # 0 in reach: blocks of one value stay exact
        high = cut.amax(2, keepdim=True).clamp(min=0)
        step = ((high - low) / 15).clamp(min=2.0**-14).half().float()
        zero = _best_zero(cut, step, (-low / step).round()).half()
        codes = _codes(cut, step, zero.float()).to(torch.uint8)
        return {
            "codes": packed(codes.flatten(1)),
            "step": step[..., 0].half(),
            "zero": zero[..., 0],
        }

    def dequantize(self, fields: Fields, columns: int) -> Tensor:
        """(code - zero) x step."""
        codes = blocks(looked_up(fields["codes"], FIFTEEN), BLOCK)
        values = (codes - fields["zero"].float()[..., None]) * fields["step"].float()[..., None]
        return values.flatten(1)[:, :columns]


def _best_zero(cut: Tensor, step: Tensor, zero: Tensor) -> Tensor:
    """Of the zeros that the solver visits, for each block the one with the least mean error.

    cut: (rows, B, 64). step, zero: (rows, B, 1). The zero is chosen block by block, where the
    authors stop for a whole matrix at once: rows shall not depend on each other.
    """
    best, least, beta = zero, torch.full_like(zero, torch.inf), HQQ_BETA
    for _ in range(HQQ_STEPS):
        codes = _codes(cut, step, zero)
        error = cut - (codes - zero) * step
        mean = error.abs().mean(2, keepdim=True)
        best, least = torch.where(mean < least, zero, best), torch.minimum(mean, least)
        forgiven = error.sign() * (error.abs() - error.abs().pow(HQQ_NORM - 1) / beta).relu()
        zero = (codes - (cut - forgiven) / step).mean(2, keepdim=True)
        beta *= HQQ_KAPPA
    return best


def _codes(cut: Tensor, step: Tensor, zero: Tensor) -> Tensor:
    return (cut / step + zero).round().clamp(0, 15)
