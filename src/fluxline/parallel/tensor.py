"""Linear layers of which each rank of a group holds a share, so that none holds all weights.

A layer that is cut by *rows* answers with some of its columns: some heads, some of an MLP's inner
width. What is elementwise, or head by head, goes on with those. The layer after it is cut by
*columns*: it reads them, and its answers are summed over the ranks. So a block meets twice.

Any number of ranks: what does not divide is dealt out as evenly as may be. Weights, biases and
adapters are cut alike. Source: Shoeybi et al. 2019, "Megatron-LM" (arXiv:1909.08053).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fluxline.errors import LoadError
from fluxline.ops.adapter import Kronecker, Learned, Range
from fluxline.parallel.group import Group


@dataclass(frozen=True, slots=True)
class Kept:
    """What this rank keeps along an axis: spans (first, last) in their order, laid close together.

    length: of the whole axis.
    """

    length: int
    spans: tuple[Range, ...]

    @classmethod
    def of(cls, sections: Sequence[Sequence[int]], rank: int) -> "Kept":
        """What a rank keeps of sections side by side, each dealt out in these lengths."""
        spans, first = [], 0
        for lengths in sections:
            own = first + sum(lengths[:rank])
            spans.append((own, own + lengths[rank]))
            first += sum(lengths)
        return cls(first, tuple(spans))

    @property
    def size(self) -> int:
        """How much that is."""
        return sum(last - first for first, last in self.spans)

    def of_range(self, start: int, end: int) -> list[tuple[Range, int]]:
        """What is kept of a span: spans of the whole axis, and where each begins among all that is
        kept."""
        found, at = [], 0
        for first, last in self.spans:
            inside = max(first, start), min(last, end)
            if inside[0] < inside[1]:
                found.append((inside, at + inside[0] - first))
            at += last - first
        return found

    def cut(self, part: Tensor, dim: int, start: int = 0) -> tuple[int, Tensor]:
        """Of a part that begins at `start`: where what is kept of it begins among all that is kept,
        and a copy of it, perhaps empty."""
        end = start + part.shape[dim]
        before = sum(min(last, start) - first for first, last in self.spans if first < start)
        inside = [(max(first, start), min(last, end)) for first, last in self.spans]
        pieces = [
            part.narrow(dim, first - start, last - first) for first, last in inside if first < last
        ]
        return before, torch.cat(pieces or [part.narrow(dim, 0, 0)], dim)


class SharedLinear(nn.Module):
    """Stands where a linear layer stood, and keeps a share of it. Thread: the engine's.

    base: the share as a layer of its own, which others may put something else in place of.
    in_features, out_features: of the whole.
    """

    base: nn.Module

    def __init__(self, whole: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = whole.in_features, whole.out_features

    def slot(self, field: str, row: int, part: Tensor) -> tuple[str, int, Tensor]:
        """Where a part of the whole's weight or bias, from a row on, belongs here: (parameter,
        first row, what is kept of it). Raises LoadError if it is no part of the whole."""
        rows, columns = self.out_features, self.in_features
        if row + len(part) > rows or tuple(part.shape[1:]) != (columns,) * (field == "weight"):
            message = f"a {field} of {tuple(part.shape)} from row {row} on does not fit a layer"
            raise LoadError(f"{message} of {columns} to {rows}")
        return self._slot(field, row, part)

    def beside(self, parts: Sequence[Learned]) -> list[Learned]:
        """What adapters have for the whole, as `base` is to have it beside itself."""
        raise NotImplementedError

    def _slot(self, field: str, row: int, part: Tensor) -> tuple[str, int, Tensor]:
        raise NotImplementedError


class OwnRows(SharedLinear):
    """Keeps some rows, and answers with theirs."""

    def __init__(self, whole: nn.Linear, kept: Kept) -> None:
        super().__init__(whole)
        self._kept = kept
        self.base = _linear(whole, self.in_features, kept.size, bias=whole.bias is not None)

    def beside(self, parts: Sequence[Learned]) -> list[Learned]:
        """A as it is, and the rows of B that are kept; of a product, its rows that are."""
        own: list[Learned] = []
        for part in parts:
            if isinstance(part, Kronecker):
                kept = part.kept(self._kept.of_range)
                own += [kept] if kept.places else []
            else:
                row, b = self._kept.cut(part[2], 0, part[0])
                own += [(row, part[1], b)] if len(b) else []
        return own

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to this rank's (..., rows)."""
        answer: Tensor = self.base(x)
        return answer

    def _slot(self, field: str, row: int, part: Tensor) -> tuple[str, int, Tensor]:
        return f"base.{field}", *self._kept.cut(part, 0, row)


class GatheredRows(OwnRows):
    """Keeps some rows, and answers with everybody's. lengths: the rows of each rank."""

    def __init__(self, whole: nn.Linear, lengths: Sequence[int], group: Group) -> None:
        super().__init__(whole, Kept.of([lengths], group.rank))
        self._lengths, self._group = lengths, group

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out), the same on all ranks."""
        return self._group.gather(self.base(x), self._lengths, dim=x.dim() - 1)


class OwnColumns(SharedLinear):
    """Keeps some columns, reads what those see, and sums what all ranks make of theirs.

    The bias is everybody's, and added once.
    """

    def __init__(self, whole: nn.Linear, kept: Kept, group: Group) -> None:
        super().__init__(whole)
        self._kept, self._group = kept, group
        self.base = _linear(whole, kept.size, self.out_features, bias=False)
        self.bias = whole.bias

    def beside(self, parts: Sequence[Learned]) -> list[Learned]:
        """The columns of A that are kept, and B as it is: it is linear, and goes into the sum. Of a
        product, its columns that are kept."""
        return [
            replace(part, columns=self._kept.spans)
            if isinstance(part, Kronecker)
            else (part[0], self._kept.cut(part[1], 1)[1], part[2])
            for part in parts
        ]

    def forward(self, x: Tensor) -> Tensor:
        """This rank's (..., columns) to (..., out), the same on all ranks."""
        answer = self._group.sum(self.base(x).contiguous())
        return answer if self.bias is None else answer + self.bias

    def _slot(self, field: str, row: int, part: Tensor) -> tuple[str, int, Tensor]:
        if field == "bias":
            return field, row, part
        return f"base.{field}", row, self._kept.cut(part, 1)[1]


def _linear(like: nn.Linear, columns: int, rows: int, *, bias: bool) -> nn.Linear:
    weight = like.weight
    return nn.Linear(columns, rows, bias=bias, device=weight.device, dtype=weight.dtype)
