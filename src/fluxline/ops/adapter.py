"""What an adapter has beside a linear layer: low-rank pairs (LoRA), Kronecker products (LoKr)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

LowRank = tuple[int, Tensor, Tensor]
"""(first row of the layer's answer that it adds to, A (r, in), B (rows, r))."""

Range = tuple[int, int]
"""First, and the one after the last."""
Sides = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]
"""The two of a pair or of a product, each a matrix, or two of which it is the product."""


@dataclass(frozen=True, slots=True, eq=False)
class Kronecker:
    """Rows of left ⊗ right, which add to a layer's answer. Never multiplied out.

    left (a, b), right (c, d): each a matrix, or the two whose product it is. The whole has
    left[i, j] right[k, l] at [i c + k, j d + l]. places: rows of the whole, and the row of the
    layer at which each span of them begins. columns: which of the whole's the layer reads, side by
    side; empty: all. Source: Yeh et al. 2023, "Navigating Text-To-Image Customization Techniques"
    (arXiv:2309.14859).
    """

    left: tuple[Tensor, ...]
    right: tuple[Tensor, ...]
    places: tuple[tuple[Range, int], ...]
    columns: tuple[Range, ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        """Of the whole: (a c, b d)."""
        (a, b), (c, d) = _shape(self.left), _shape(self.right)
        return a * c, b * d

    def each(self, change: Callable[[Tensor], Tensor]) -> "Kronecker":
        """The same of changed tensors."""
        left, right = (tuple(map(change, side)) for side in (self.left, self.right))
        return replace(self, left=left, right=right)

    def kept(self, of_range: Callable[[int, int], Sequence[tuple[Range, int]]]) -> "Kronecker":
        """What is left of it where the layer keeps some of its rows alone.

        of_range: of rows of the whole layer, from one up to another, which are kept, and where each
        span of them begins among all that is kept.
        """
        places = [
            ((first - row + begin, last - row + begin), at)
            for (begin, end), row in self.places
            for (first, last), at in of_range(row, row + end - begin)
        ]
        return replace(self, places=tuple(places))

    def answer(self, x: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Of x (..., columns), for each place: the row where it is, and what to add (..., rows)."""
        height = _shape(self.right)[0]
        top = min(first for (first, _), _ in self.places) // height
        bottom = -(-max(last for (_, last), _ in self.places) // height)
        product = self._multiplied(x, (self.left[0][top:bottom], *self.left[1:])).flatten(-2)
        for (first, last), row in self.places:
            yield row, product[..., first - top * height : last - top * height]

    def _multiplied(self, x: Tensor, left: tuple[Tensor, ...]) -> Tensor:
        """Of some rows of left: (..., rows, c).

        In the order that makes less of a token meanwhile: however odd the sides are, no more than
        the greater of what it reads and what it answers.
        """
        (a, b), (c, d) = _shape(self.left), _shape(self.right)
        z = self._spread(x).reshape(*x.shape[:-1], b, d)
        if b * c <= a * d:
            return _across(left, _along(self.right, z))
        return _along(self.right, _across(left, z))

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


def sides_of(learned: Learned) -> Sides:
    """The two that it is made of."""
    if isinstance(learned, Kronecker):
        return learned.left, learned.right
    return (learned[1],), (learned[2],)


def bytes_of(learned: Learned) -> int:
    """Memory that it takes."""
    return sum(tensor.nbytes for side in sides_of(learned) for tensor in side)


def in_dtype(learned: Learned, dtype: torch.dtype) -> Learned:
    """The same, as layers that compute in a dtype need it."""
    if isinstance(learned, Kronecker):
        return learned.each(lambda tensor: tensor.to(dtype))
    row, a, b = learned
    return row, a.to(dtype), b.to(dtype)


def _shape(side: tuple[Tensor, ...]) -> tuple[int, int]:
    return side[0].shape[0], side[-1].shape[1]


def _along(factors: tuple[Tensor, ...], z: Tensor) -> Tensor:
    """(..., b, d) to (..., b, c)."""
    for factor in reversed(factors):
        z = F.linear(z, factor)
    return z


def _across(factors: tuple[Tensor, ...], z: Tensor) -> Tensor:
    """(..., b, c) to (..., a, c)."""
    for factor in reversed(factors):
        z = torch.matmul(factor, z)
    return z
