"""The ranks of one replica, as whoever runs forwards needs them."""

from collections.abc import Callable
from typing import Self

import torch.distributed as dist
from torch import Tensor

from fluxline.degrees import Degrees
from fluxline.parallel.bands import RankBands
from fluxline.parallel.group import Group, Traffic, shares
from fluxline.parallel.mesh import Mesh
from fluxline.parallel.sequence import SplitTransformer


class Crew:
    """Divides the rows of a forward, and the tokens of what runs it. Thread: the engine's."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh

    @classmethod
    def alone(cls) -> Self:
        """A single rank: it has every row, and exchanges nothing."""
        return cls(Mesh.join(Degrees()))

    @property
    def is_shared(self) -> bool:
        """Whether there are other ranks."""
        return self._mesh.whole.size > 1

    @property
    def divides_tokens(self) -> bool:
        """Whether a sequence is held by several ranks."""
        return self._mesh.sequence.size > 1

    @property
    def weights(self) -> Group:
        """The ranks that hold a network's weights together."""
        return self._mesh.tensor

    @property
    def traffic(self) -> Traffic:
        """What this rank has sent."""
        return self._mesh.traffic

    def divided(self, transformer: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """What runs a transformer on all ranks that hold a sequence together."""
        return SplitTransformer(transformer, self._mesh)

    def band(self, x: Tensor, unit: int) -> RankBands | None:
        """This rank's band of a picture (R, C, rows, w); None: it has all."""
        return RankBands.cut(self._mesh.whole, x, unit) if self.is_shared else None

    def part(self) -> None:
        """Exchange nothing more. Harmless if there are no others; the others need not be there."""
        if self.is_shared:
            dist.destroy_process_group()

    def share(self, rows: int) -> slice:
        """The rows of a forward that this rank computes; none, where there are too few."""
        lengths = shares(rows, self._mesh.rows.size)
        first = sum(lengths[: self._mesh.rows.rank])
        return slice(first, first + lengths[self._mesh.rows.rank])

    def together(self, part: Tensor, rows: int) -> Tensor:
        """All rows (R, N, C) of which this rank has computed its share."""
        return self._mesh.rows.gather(part, shares(rows, self._mesh.rows.size), dim=0)
