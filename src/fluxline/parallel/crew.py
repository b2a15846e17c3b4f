"""The ranks of one replica, as whoever runs forwards needs them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor

from fluxline.approximation import Approximation
from fluxline.degrees import Degrees, part_of
from fluxline.ops.bound import Staged
from fluxline.parallel.bands import RankBands
from fluxline.parallel.group import Group, Traffic, shares
from fluxline.parallel.mesh import Mesh
from fluxline.parallel.sequence import SplitTransformer
from fluxline.parallel.staged import StagedTransformer
from fluxline.parallel.stages import Stages
from fluxline.parallel.stale import DistriFusion, Piflux, Remembered


class Crew:
    """Divides the rows of a forward, and the tokens of what runs it. Thread: the engine's."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._split: SplitTransformer | None = None
        self._staged: StagedTransformer | None = None
        self.stages = lru_cache(maxsize=1)(self._make_stages)

    @classmethod
    def alone(cls) -> Self:
        """A single rank: it has every row, and exchanges nothing."""
        return cls(Mesh.join(Degrees()))

    @property
    def is_shared(self) -> bool:
        """Whether there are other ranks."""
        return self._mesh.whole.size > 1

    @property
    def degrees(self) -> Degrees:
        """How many there are along each axis."""
        return self._mesh.degrees

    @property
    def parts(self) -> int:
        """Ranks that hold a sequence together, or the stages that it goes through."""
        return self._mesh.sequence.size * self._mesh.stages.size

    @property
    def weights(self) -> Group:
        """The ranks that hold a network's weights together."""
        return self._mesh.tensor

    @property
    def blocks(self) -> Group:
        """The ranks that each hold some of a network's blocks."""
        return self._mesh.stages

    @property
    def traffic(self) -> Traffic:
        """What this rank has sent."""
        return self._mesh.traffic

    def divided(self, transformer: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """What runs a transformer on all ranks that hold a sequence together."""
        self._split = SplitTransformer(transformer, self._mesh)
        return self._split

    def staged(self, transformer: Staged, device: torch.device) -> Callable[..., Tensor]:
        """What runs this rank's blocks of a transformer, in its turn."""
        self._staged = StagedTransformer(transformer, self.stages(device))
        return self._staged

    def remembering(self, asked: Approximation) -> Remembered:
        """What the ranks remember of one picture, that is approximated by piflux or distrifusion.

        asked: with its exact evaluations counted.
        """
        assert asked.sync is not None
        if asked.mode == "piflux":
            return Piflux(self._mesh.sequence, synchronous=asked.sync, every=asked.every)
        return DistriFusion(self._mesh.sequence, synchronous=asked.sync)

    def evaluate(
        self, rows: int, run: Callable[[slice], Tensor], turn: Remembered | None = None
    ) -> Tensor:
        """All rows (R, N, C) of a forward, of which `run` gives those that it is told.

        Where every rank can have as many rows as every other, each runs its own whole, and nothing
        but the answer is sent; else they divide the tokens too. turn: how they do that; None:
        exactly. A rank may be told of no rows, and gives none.
        """
        group = self._mesh.rows
        if turn is None and rows % self._mesh.batch.size == 0:
            group = self._mesh.batch
        counts = shares(rows, group.size)
        own = part_of(rows, group.size, group.rank)
        with self._taking(turn, is_whole=group is not self._mesh.rows):
            part = self._in_stages(own, run) if self._staged is not None else run(own)
        return group.gather(part, counts, dim=0)

    @property
    def most_at_once(self) -> int:
        """Ranks that rows of a forward may keep busy all at once."""
        return self._mesh.batch.size * self._mesh.stages.size

    @contextmanager
    def _taking(self, turn: Remembered | None, *, is_whole: bool) -> Iterator[None]:
        """Run what is divided in this way inside."""
        if self._split is None:
            yield
            return
        self._split.turn, self._split.is_whole = turn, is_whole
        try:
            yield
        finally:
            self._split.turn, self._split.is_whole = None, False

    def _in_stages(self, own: slice, run: Callable[[slice], Tensor]) -> Tensor:
        """Run rows through the stages. A group of stages that has none of a forward's runs none."""
        assert self._staged is not None
        rows = own.stop - own.start
        if not rows:
            return run(own)
        return self._staged.evaluate(
            rows, lambda piece: run(slice(own.start + piece.start, own.start + piece.stop))
        )

    def _make_stages(self, device: torch.device) -> Stages:
        """Those that have blocks of their own, or else hold a sequence, one after another. All ask
        for them at once."""
        group = self._mesh.stages if self._mesh.stages.size > 1 else self._mesh.sequence
        return Stages(group, device)

    def agree(self, is_so: bool, device: torch.device) -> bool:
        """Whether it is so on every rank. All ask at once."""
        count = self._mesh.whole.sum(torch.tensor([float(is_so)], device=device))
        return int(count.item()) == self._mesh.whole.size

    def band(self, x: Tensor, unit: int) -> RankBands | None:
        """This rank's band of a picture (R, C, rows, w); None: it has all."""
        return RankBands.cut(self._mesh.whole, x, unit) if self.is_shared else None

    def part(self) -> None:
        """Exchange nothing more. Harmless if there are no others; the others need not be there."""
        if self.is_shared:
            dist.destroy_process_group()
