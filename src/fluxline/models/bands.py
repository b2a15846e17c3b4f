"""An activation in bands of rows, one below the other: what a network that goes through it band by
band asks for, and the bands of one device.

What to compute on a band is not its business; `banded` has that. Bands that each lie on a rank of
their own are those of `parallel`.
"""

from collections.abc import Iterator
from typing import Protocol, Self

import torch
from torch import Tensor

Halo = tuple[Tensor | None, Tensor, Tensor | None]
"""The row above a band (R, C, 1, w), the band (R, C, rows, w), the row below; None beyond the
picture."""


class Bands(Protocol):
    """Those bands of an activation that are here, from the top down."""

    def __iter__(self) -> Iterator[Tensor]:
        """Each in turn, where it is computed on."""
        ...

    def __setitem__(self, number: int, band: Tensor) -> None:
        """Put another in the place of one."""
        ...

    def append(self, band: Tensor) -> None:
        """Put one below the others."""
        ...

    def new(self) -> Self:
        """None yet: for what is made of each of these."""
        ...

    def with_halo(self) -> Iterator[Halo]:
        """Each in turn, with the rows that touch it."""
        ...

    def sum(self, tensor: Tensor) -> Tensor:
        """What was summed over the bands here, summed over those of others too."""
        ...

    def gather(self, tensor: Tensor) -> Tensor:
        """Tokens (R, n, C) of the bands here, and above and below them those of others'."""
        ...

    def whole(self) -> Tensor:
        """All bands as one, those of others too."""
        ...


class LocalBands:
    """All bands of an activation. Between uses they lie at `home`. Thread: the engine's."""

    def __init__(self, device: torch.device, home: torch.device) -> None:
        self._device, self._home = device, home
        self._bands: list[Tensor] = []

    def __iter__(self) -> Iterator[Tensor]:
        return (band.to(self._device) for band in self._bands)

    def __setitem__(self, number: int, band: Tensor) -> None:
        self._bands[number] = band.to(self._home)

    def append(self, band: Tensor) -> None:
        """Put one below the others."""
        self._bands.append(band.to(self._home))

    def new(self) -> Self:
        """None yet, of the same device and home."""
        return type(self)(self._device, self._home)

    def with_halo(self) -> Iterator[Halo]:
        """Each in turn, with the rows that touch it."""
        for number, band in enumerate(self):
            above = self._bands[number - 1][:, :, -1:] if number else None
            last = number + 1 == len(self._bands)
            below = None if last else self._bands[number + 1][:, :, :1]
            yield self._here(above), band, self._here(below)

    def sum(self, tensor: Tensor) -> Tensor:
        """All bands are here."""
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        """All bands are here."""
        return tensor

    def whole(self) -> Tensor:
        """All bands as one."""
        return torch.cat(list(self), dim=2)

    def _here(self, row: Tensor | None) -> Tensor | None:
        return None if row is None else row.to(self._device)
