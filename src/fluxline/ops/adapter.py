"""What an adapter has beside a linear layer: low-rank pairs (LoRA), Kronecker products (LoKr)."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

LowRank = tuple[int, Tensor, Tensor]
"""(first row of the layer's answer that it adds to, A (r, in), B (rows, r))."""

Span = tuple[int, int]
"""First, and the one after the last."""


@dataclass(frozen=True, slots=True, eq=False)
class Kronecker:
    """Rows of left ⊗ right, which add to a layer's answer from `row` on. Never multiplied out.

    left (a, b), right (c, d): each a matrix, or the two whose product it is. The whole has
    left[i, j] right[k, l] at [i c + k, j d + l]. rows: of the whole. columns: which of the whole's
    the layer reads, side by side; empty: all. Source: Yeh et al. 2023, "Navigating Text-To-Image
    Customization Techniques" (arXiv:2309.14859).
    """

    row: int
    left: tuple[Tensor, ...]
    right: tuple[Tensor, ...]
    rows: Span
    columns: tuple[Span, ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        """Of the whole: (a c, b d)."""
        (a, b), (c, d) = (
            (factors[0].shape[0], factors[-1].shape[1]) for factors in (self.left, self.right)
        )
        return a * c, b * d

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All it holds."""
        return self.left + self.right

    def each(self, change: Callable[[Tensor], Tensor]) -> "Kronecker":
        """The same of changed tensors."""
        left, right = (tuple(map(change, factors)) for factors in (self.left, self.right))
        return replace(self, left=left, right=right)

    def within(self, rows: Span, row: int) -> "Kronecker":
        """Some of its rows, as the layer counts them, for a layer that has them at `row`."""
        begin = self.rows[0] - self.row
        return replace(self, row=row, rows=(rows[0] + begin, rows[1] + begin))

    def __call__(self, x: Tensor) -> Tensor:
        """(..., columns) to (..., rows)."""
        height, columns = self.right[0].shape[0], self.right[-1].shape[1]
        first, last = self.rows
        top, bottom = first // height, -(-last // height)
        z = self._spread(x).reshape(*x.shape[:-1], -1, columns)
        for factor in reversed(self.right):
            z = F.linear(z, factor)
        for factor in reversed((self.left[0][top:bottom], *self.left[1:])):
            z = torch.matmul(factor, z)
        return z.flatten(-2)[..., first - top * height : last - top * height]

    def _spread(self, x: Tensor) -> Tensor:
        """What the layer reads where the whole has it, and 0 where it reads nothing."""
        if not self.columns:
            return x
        whole = x.new_zeros(*x.shape[:-1], self.shape[1])
        start = 0
        for first, last in self.columns:
            whole[..., first:last] = x[..., start : start + last - first]
            start += last - first
        return whole


Learned = LowRank | Kronecker


def tensors_of(learned: Learned) -> tuple[Tensor, ...]:
    """All that it holds."""
    return learned.tensors if isinstance(learned, Kronecker) else learned[1:]


def in_dtype(learned: Learned, dtype: torch.dtype) -> Learned:
    """The same, as layers that compute in a dtype need it."""
    if isinstance(learned, Kronecker):
        return learned.each(lambda tensor: tensor.to(dtype))
    row, a, b = learned
    return row, a.to(dtype), b.to(dtype)
