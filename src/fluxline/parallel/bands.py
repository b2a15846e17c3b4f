"""An activation of which every rank of a group holds a band of rows, one below the other.

What a network that goes through pictures band by band asks of its bands, told by those who hold
the others. The ranks walk through the same network and meet at every exchange.
Source: DistVAE (xdit-project/DistVAE), whose norms leave out how far the ranks' means are apart.
"""

from collections.abc import Iterator, Sequence
from typing import Self

import torch
from torch import Tensor

from fluxline.parallel.group import Group, shares


class RankBands:
    """The band of this rank. All ranks make the same calls in the same order.

    rows: of each rank's band, at one of the sizes that the network goes through.
    """

    def __init__(self, group: Group, rows: Sequence[int], band: Tensor | None = None) -> None:
        self._group, self._rows, self._band = group, tuple(rows), band

    @classmethod
    def cut(cls, group: Group, x: Tensor, unit: int) -> Self | None:
        """This rank's rows of (R, C, rows, w), in units of so many; None: too few for all."""
        units = x.shape[2] // unit
        if units < group.size:
            return None
        rows = [share * unit for share in shares(units, group.size)]
        return cls(group, rows, torch.split(x, rows, dim=2)[group.rank])

    def __iter__(self) -> Iterator[Tensor]:
        yield self._held()

    def __setitem__(self, number: int, band: Tensor) -> None:
        self._band = band

    def append(self, band: Tensor) -> None:
        """Hold a band."""
        self._band = band

    def new(self) -> Self:
        """None yet, of the same group."""
        return type(self)(self._group, self._rows)

    def with_halo(self) -> Iterator[tuple[Tensor | None, Tensor, Tensor | None]]:
        """The band, between the last row of the rank above and the first of the rank below."""
        band, rank = self._held(), self._group.rank
        sent: dict[int, Tensor] = {}
        halo: dict[int, Tensor] = {}
        for other, row in ((rank - 1, band[:, :, :1]), (rank + 1, band[:, :, -1:])):
            if 0 <= other < self._group.size:
                sent[other] = row
                halo[other] = torch.empty(row.shape, dtype=row.dtype, device=row.device)
        self._group.exchange(sent, halo)()
        yield halo.get(rank - 1), band, halo.get(rank + 1)

    def sum(self, tensor: Tensor) -> Tensor:
        """Over all ranks."""
        return self._group.sum(tensor.clone())

    def gather(self, tensor: Tensor) -> Tensor:
        """Tokens (R, n, C) of all ranks, which may hold unequal numbers."""
        return self._group.gather(tensor, self._lengths(tensor.shape[1]), dim=1)

    def whole(self) -> Tensor:
        """The bands of all ranks, one below the other."""
        band = self._held()
        return self._group.gather(band, self._lengths(band.shape[2]), dim=2)

    def _lengths(self, own: int) -> list[int]:
        """Of what every rank has, where this one has so much."""
        return [own * rows // self._rows[self._group.rank] for rows in self._rows]

    def _held(self) -> Tensor:
        assert self._band is not None  # put there before it is read
        return self._band
