"""Approximate sequence parallelism: keys of other ranks' parts may be of an earlier evaluation.

Pictures change little from one evaluation to the next, so a rank may attend to what it knows of the
others and compute on. Neither is exact; both begin with evaluations that are.

*piflux*: parts wander from rank to rank, one further at each evaluation, so that every rank comes
by everywhere and nothing but the velocity is ever sent. With N ranks the keys of a part are up to
N - 1 evaluations old. *DistriFusion*: parts stay, and fresh keys travel to everybody while the next
layers compute; they are one evaluation old.

Sources: piflux (piflux/piflux, its later form: text is cut too, and the velocity is put together by
the part it is of); Li et al. 2024, DistriFusion (arXiv:2402.19481).
"""

from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from fluxline.ops.attention import attend
from fluxline.parallel.group import Group, Waiting
from fluxline.parallel.sequence import Cut


class Remembered:
    """Keys and values of the whole sequence, for each layer, of one job.

    group: the ranks that hold the sequence. synchronous: how many first evaluations are exact.
    """

    def __init__(self, group: Group, synchronous: int) -> None:
        self._group, self._synchronous = group, synchronous
        self._evaluation, self._layer = -1, 0
        self._cut: Cut | None = None
        self._known: list[Tensor] = []  # (2, R, H, S, head_dim) of each layer, parts in order

    @property
    def bytes(self) -> int:
        """Memory it holds."""
        return sum(known.nbytes for known in self._known)

    @property
    def parts(self) -> Sequence[int]:
        """The part that each rank computes in this evaluation."""
        return range(self._group.size)

    @property
    def is_synchronous(self) -> bool:
        """Whether this evaluation is exact."""
        return self._evaluation < self._synchronous

    def begin(self, cut: Cut) -> None:
        """Another evaluation."""
        self._cut, self._layer = cut, 0
        self._evaluation += 1

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend to all that is known, q, k, v: (R, H, s, head_dim) of this rank's part."""
        fresh = torch.stack((k, v))
        if self._layer == len(self._known):
            assert self._cut is not None
            shape = (*fresh.shape[:3], sum(self._cut.lengths), fresh.shape[4])
            self._known.append(fresh.new_zeros(shape))
        self._take(self._layer, fresh)
        known = self._known[self._layer]
        self._layer += 1
        return attend(q, *known)

    def close(self) -> None:
        """Let go of what it holds."""
        self._known.clear()

    def _take(self, layer: int, fresh: Tensor) -> None:
        """Learn what this rank has computed, and what others have."""
        raise NotImplementedError

    def _write(self, layer: int, part: int, tensor: Tensor) -> None:
        assert self._cut is not None
        lengths = self._cut.lengths
        first = sum(lengths[:part])
        self._known[layer][:, :, :, first : first + lengths[part]] = tensor

    def _begin_gather(self, fresh: Tensor) -> Waiting:
        assert self._cut is not None
        lengths = [self._cut.lengths[part] for part in self.parts]
        return self._group.begin_gather(fresh, lengths, dim=3)


class Piflux(Remembered):
    """Parts wander. every: how often keys are exchanged after the first evaluations; 0: never."""

    def __init__(self, group: Group, *, synchronous: int, every: int = 0) -> None:
        super().__init__(group, synchronous)
        self._every = every

    @property
    def parts(self) -> Sequence[int]:
        """One further at every evaluation after those that are exact."""
        shift, count = max(0, self._evaluation - self._synchronous), self._group.size
        return [(rank + shift) % count for rank in range(count)]

    @property
    def is_synchronous(self) -> bool:
        """Whether this evaluation is exact."""
        beyond = self._evaluation - self._synchronous
        return beyond < 0 or (self._every > 0 and beyond % self._every == self._every - 1)

    def _take(self, layer: int, fresh: Tensor) -> None:
        if not self.is_synchronous:
            self._write(layer, self.parts[self._group.rank], fresh)
            return
        for part, tensor in zip(self.parts, self._begin_gather(fresh)(), strict=True):
            self._write(layer, part, tensor)


class DistriFusion(Remembered):
    """Parts stay; fresh keys are on their way while the ranks go on."""

    def __init__(self, group: Group, *, synchronous: int) -> None:
        super().__init__(group, synchronous)
        self._coming: deque[Waiting] = deque()  # of each layer, begun in this evaluation
        self._were: deque[Waiting] = deque()  # in the one before, and not yet waited for

    def close(self) -> None:
        """Wait for what is on its way, so that nobody takes it for something else."""
        while waiting := self._were or self._coming:
            waiting.popleft()()
        super().close()

    @property
    def bytes(self) -> int:
        """Memory it holds, with what is on its way."""
        coming = len(self._were) + len(self._coming)
        return super().bytes + coming * (self._known[0].nbytes if self._known else 0)

    def begin(self, cut: Cut) -> None:
        """Another evaluation."""
        super().begin(cut)
        self._were, self._coming = self._coming, deque()

    def _take(self, layer: int, fresh: Tensor) -> None:
        own = self._group.rank
        if self.is_synchronous:
            for part, tensor in enumerate(self._begin_gather(fresh)()):
                self._write(layer, part, tensor)
            return
        if self._were:  # in the order in which they were begun: that of the layers
            for part, tensor in enumerate(self._were.popleft()()):
                self._write(layer, part, tensor)
        self._write(layer, own, fresh)
        self._coming.append(self._begin_gather(fresh))
