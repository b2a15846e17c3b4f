"""A byte a weight: int8 with or without quantized activations, and float8.

Each output row has a scale of its own, and so has each row of activations where they are quantized
too: a picture must not depend on what else is in its batch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fluxline.linear.kind import TINY, Fields, Kind

INT8_MOST = 127.0
FP8 = torch.float8_e4m3fn
FP8_MOST = torch.finfo(FP8).max
INT_MM_ROWS = 17  # what CUDA's product of int8 wants at least


class Int8(Kind):
    """int8 weights; activations stay as they are."""

    name = "int8"

    def empty(self, rows: int, columns: int) -> Fields:
        """A byte a weight, a float32 a row."""
        return {"codes": torch.empty(rows, columns, dtype=torch.int8), "scale": torch.empty(rows)}

    def quantize(self, weight: Tensor) -> Fields:
        """Round to 127ths of the largest of each row."""
        codes, scale = int8_rows(weight)
        return {"codes": codes, "scale": scale}

    def dequantize(self, fields: Fields, columns: int) -> Tensor:
        """codes x scale."""
        return fields["codes"].float() * fields["scale"][:, None]

    def multiply(self, x: Tensor, fields: Fields) -> Tensor:
        """Scale the outputs in place of the weights: the same, and far fewer products."""
        return F.linear(x, fields["codes"].to(x.dtype)) * fields["scale"].to(x.dtype)


class Int8Dynamic(Int8):
    """int8 weights times int8 activations, quantized row by row as they come."""

    name = "int8-dynamic"

    def multiply(self, x: Tensor, fields: Fields) -> Tensor:
        """Sum in int32 where CUDA does, else in float32."""
        codes = fields["codes"]
        rows, scale = int8_rows(x.flatten(0, -2).float())
        if self.is_native(x.device, *codes.shape):
            sums = _int_mm(rows, codes).float()
        else:
            sums = F.linear(rows.float(), codes.float())
        product = sums * scale[:, None] * fields["scale"]
        return product.to(x.dtype).view(*x.shape[:-1], -1)

    def is_native(self, device: torch.device, rows: int, columns: int) -> bool:
        """On CUDA. A CPU has the product too, and takes 20 times as long for it as for float32."""
        return device.type == "cuda" and rows % 8 == columns % 8 == 0


class Fp8(Kind):
    """float8 (e4m3) weights, and activations where the card multiplies them."""

    name = "fp8"

    def empty(self, rows: int, columns: int) -> Fields:
        """A byte a weight, a float32 a row."""
        return {"codes": torch.empty(rows, columns, dtype=FP8), "scale": torch.empty(rows)}

    def quantize(self, weight: Tensor) -> Fields:
        """Let the largest of each row be the largest float8."""
        codes, scale = fp8_rows(weight)
        return {"codes": codes, "scale": scale}

    def dequantize(self, fields: Fields, columns: int) -> Tensor:
        """codes x scale."""
        return fields["codes"].float() * fields["scale"][:, None]

    def multiply(self, x: Tensor, fields: Fields) -> Tensor:
        """One product of float8 where there is one, else with the weights as x is."""
        codes = fields["codes"]
        if not self.is_native(x.device, *codes.shape):
            return F.linear(x, codes.to(x.dtype)) * fields["scale"].to(x.dtype)
        return fp8_product(x.flatten(0, -2), fields).to(x.dtype).view(*x.shape[:-1], -1)

    def is_native(self, device: torch.device, rows: int, columns: int) -> bool:
        """On cards since Ada and Hopper."""
        is_able = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)
        return is_able and rows % 16 == columns % 16 == 0


def int8_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (rows, columns) and scale (rows,) of a matrix."""
    scale = x.abs().amax(1).clamp(min=TINY) / INT8_MOST
    return (x / scale[:, None]).round().to(torch.int8), scale


def fp8_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (rows, columns) and scale (rows,) of a matrix."""
    scale = x.abs().amax(1).clamp(min=TINY) / FP8_MOST
    return (x / scale[:, None]).clamp(-FP8_MOST, FP8_MOST).to(FP8), scale


def fp8_product(x: Tensor, fields: Fields) -> Tensor:
    """x (rows, columns) times a float8 weight, both quantized: bfloat16."""
    codes, scale = fp8_rows(x.float())
    return torch._scaled_mm(
        codes,
        fields["codes"].t(),
        scale_a=scale[:, None],
        scale_b=fields["scale"][None],
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )


def _int_mm(rows: Tensor, codes: Tensor) -> Tensor:
    short = max(0, INT_MM_ROWS - len(rows))
    return torch._int_mm(F.pad(rows, (0, 0, 0, short)), codes.t())[: len(rows)]
