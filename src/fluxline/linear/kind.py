"""What a kind of quantized weight is, and the few shapes that all of them share.

A kind works by output row: rows of a weight can be quantized in any order and by any portion.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

Fields = dict[str, Tensor]
"""What a weight became, tensor by tensor. The first axis of each is the weight's rows."""

TINY = torch.finfo(torch.float32).tiny


class Kind:
    """One way to hold the weight of a linear layer. Stateless; one instance serves all layers.

    rank: of the low-rank part that is taken out of a weight before; 0: none.
    """

    name: str
    rank = 0

    def empty(self, rows: int, columns: int) -> Fields:
        """Fields of a weight (rows, columns), not filled, on the device that is the default."""
        raise NotImplementedError

    def quantize(self, weight: Tensor) -> Fields:
        """Hold a weight (rows, columns) float32."""
        raise NotImplementedError

    def dequantize(self, fields: Fields, columns: int) -> Tensor:
        """The weight (rows, columns) float32 that fields stand for."""
        raise NotImplementedError

    def multiply(self, x: Tensor, fields: Fields) -> Tensor:
        """x (..., columns) times the transposed weight: (..., rows) in the dtype of x."""
        return F.linear(x, self.dequantize(fields, x.shape[-1]).to(x.dtype))

    def is_native(self, device: torch.device, rows: int, columns: int) -> bool:
        """Whether `multiply` is fast there as the kind means it, and no sum of plain floats."""
        return True


def blocks(weight: Tensor, size: int) -> Tensor:
    """Cut rows (rows, columns) into blocks (rows, B, size); the last is filled up with zeros."""
    short = -weight.shape[1] % size
    return rearrange(F.pad(weight, (0, short)), "r (b c) -> r b c", c=size)


def count(columns: int, size: int) -> int:
    """Blocks of a row."""
    return -(-columns // size)


def nearest(values: Tensor, table: tuple[float, ...]) -> Tensor:
    """Index uint8 of the entry of a rising table that is nearest to each value."""
    middles = _middles(table, values.device)
    return torch.bucketize(values, middles, out_int32=True).to(torch.uint8)


def packed(codes: Tensor) -> Tensor:
    """Two codes below 16 a byte, the first in the low half: (rows, C) to (rows, C / 2)."""
    return codes[:, ::2] | codes[:, 1::2] << 4


def looked_up(codes: Tensor, table: tuple[float, ...]) -> Tensor:
    """Entries of a table of sixteen by packed codes: (rows, C / 2) to (rows, C) float32."""
    return F.embedding(codes.int(), _pairs(table, codes.device)).flatten(1)


@lru_cache(maxsize=64)
def _middles(table: tuple[float, ...], device: torch.device) -> Tensor:
    entries = torch.tensor(table)
    return ((entries[1:] + entries[:-1]) / 2).to(device)


@lru_cache(maxsize=64)
def _pairs(table: tuple[float, ...], device: torch.device) -> Tensor:
    """What each byte means (256, 2): one look-up instead of two and some shifting."""
    entries = torch.tensor(table)
    byte = torch.arange(256)
    return torch.stack((entries[byte & 15], entries[byte >> 4]), dim=1).to(device)
