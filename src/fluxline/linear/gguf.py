"""The blocks that GGUF files hold weights in, as they lie there. They are read, never written.

Source: ggml-org/ggml, ggml-common.h (what lies in a block) and ggml-quants.c (what it means).
"""

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor

from fluxline.linear.kind import Fields, Kind, count

Decode = Callable[[Tensor], Tensor]
"""Blocks (N, bytes) uint8 to values (N, size) float32."""


class Blocks(Kind):
    """A block type of GGUF: `size` values in `bytes` bytes."""

    def __init__(self, name: str, size: int, block_bytes: int, decode: Decode) -> None:
        self.name = name
        self.size, self.bytes = size, block_bytes
        self._decode = decode

    def empty(self, rows: int, columns: int) -> Fields:
        """Whole blocks, row by row."""
        width = count(columns, self.size) * self.bytes
        return {"blocks": torch.empty(rows, width, dtype=torch.uint8)}

    def dequantize(self, fields: Fields, columns: int) -> Tensor:
        """What the blocks mean."""
        rows = fields["blocks"]
        values = self._decode(rows.reshape(-1, self.bytes))
        return values.view(len(rows), -1)[:, :columns]


def _q4_0(block: Tensor) -> Tensor:
    return _half(block, 0) * (_halves(block[:, 2:]) - 8)


def _q4_1(block: Tensor) -> Tensor:
    return _half(block, 0) * _halves(block[:, 4:]) + _half(block, 2)


def _q5_0(block: Tensor) -> Tensor:
    return _half(block, 0) * (_halves(block[:, 6:]) + 16 * _bits(block[:, 2:6]) - 16)


def _q5_1(block: Tensor) -> Tensor:
    return _half(block, 0) * (_halves(block[:, 8:]) + 16 * _bits(block[:, 4:8])) + _half(block, 2)


def _q8_0(block: Tensor) -> Tensor:
    return _half(block, 0) * block[:, 2:].view(torch.int8).float()


def _q2_k(block: Tensor) -> Tensor:
    scales, codes = block[:, :16], _shifted(block[:, 16:80], 32, 2)
    step = _half(block, 80) * (scales & 15)
    low = _half(block, 82) * (scales >> 4)
    return _of_blocks(codes, 16, step, low)


def _q3_k(block: Tensor) -> Tensor:
    high, scales = _shifted(block[:, :32], 32, 1), block[:, 96:108]
    codes = _shifted(block[:, 32:96], 32, 2) - 4 * (1 - high)
    upper = _shifted(scales[:, 8:], 4, 2)
    step = _half(block, 108) * (_shifted(scales[:, :8], 8, 4) + 16 * upper - 32)
    return _of_blocks(codes, 16, step, torch.zeros_like(step))


def _q4_k(block: Tensor) -> Tensor:
    step, low = _steps(block)
    return _of_blocks(_shifted(block[:, 16:], 32, 4), 32, step, low)


def _q5_k(block: Tensor) -> Tensor:
    step, low = _steps(block)
    codes = _shifted(block[:, 48:], 32, 4) + 16 * _shifted(block[:, 16:48], 32, 1)
    return _of_blocks(codes, 32, step, low)


def _q6_k(block: Tensor) -> Tensor:
    codes = _shifted(block[:, :128], 64, 4) + 16 * _shifted(block[:, 128:192], 32, 2) - 32
    step = _half(block, 208) * block[:, 192:208].view(torch.int8).float()
    return _of_blocks(codes, 16, step, torch.zeros_like(step))


def _half(block: Tensor, at: int) -> Tensor:
    """The float16 at a byte of each block: (N, 1) float32."""
    return block[:, at : at + 2].contiguous().view(torch.float16).float()


def _halves(codes: Tensor) -> Tensor:
    """Low halves of all bytes, then high halves: (N, 16) to (N, 32) float32."""
    return torch.cat((codes & 15, codes >> 4), dim=1).float()


def _bits(codes: Tensor) -> Tensor:
    """Bits of the bytes, lowest first: (N, 4) to (N, 32) float32."""
    places = torch.arange(8, dtype=torch.uint8, device=codes.device)
    return (codes[..., None] >> places & 1).flatten(1).float()


def _shifted(codes: Tensor, run: int, bits: int) -> Tensor:
    """Codes of so many bits: of each run of bytes the lowest, then of the same the next …

    (N, bytes) to (N, bytes x 8 / bits) float32.
    """
    places = torch.arange(0, 8, bits, dtype=torch.uint8, device=codes.device)
    runs = rearrange(codes, "n (runs run) -> n runs 1 run", run=run)
    return (runs >> places[:, None] & (1 << bits) - 1).flatten(1).float()


def _steps(block: Tensor) -> tuple[Tensor, Tensor]:
    """Eight steps and eight lows of six bits each, which Q4_K and Q5_K fold into twelve bytes."""
    first, second, rest = block[:, 4:8], block[:, 8:12], block[:, 12:16]
    steps = torch.cat((first & 63, rest & 15 | (first >> 6) << 4), dim=1)
    lows = torch.cat((second & 63, rest >> 4 | (second >> 6) << 4), dim=1)
    return _half(block, 0) * steps, _half(block, 2) * lows


def _of_blocks(codes: Tensor, size: int, step: Tensor, low: Tensor) -> Tensor:
    """code x step - low, each `size` codes having their own."""
    parts = rearrange(codes, "n (b c) -> n b c", c=size)
    return (parts * step[..., None] - low[..., None]).flatten(1)


GGUF_KINDS = {
    kind.name: kind
    for kind in (
        Blocks("Q8_0", 32, 34, _q8_0),
        Blocks("Q6_K", 256, 210, _q6_k),
        Blocks("Q5_K", 256, 176, _q5_k),
        Blocks("Q5_1", 32, 24, _q5_1),
        Blocks("Q5_0", 32, 22, _q5_0),
        Blocks("Q4_K", 256, 144, _q4_k),
        Blocks("Q4_1", 32, 20, _q4_1),
        Blocks("Q4_0", 32, 18, _q4_0),
        Blocks("Q3_K", 256, 110, _q3_k),
        Blocks("Q2_K", 256, 84, _q2_k),
    )
}
