"""The ranks of a replica as a block of axes: rows, stages, ring, ulysses, tensor.

A rank's number counts the last axis fastest, so that what exchanges most lies nearest: all-reduces
of `tensor`, then the all-to-all of `ulysses`, then the ring, then whole rows.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist

from fluxline.degrees import Degrees
from fluxline.parallel.group import EXCHANGE_S, Group, Traffic


@dataclass(frozen=True, slots=True)
class Mesh:
    """This rank's neighbours along every axis."""

    rows: Group
    stages: Group
    ring: Group
    ulysses: Group
    tensor: Group
    sequence: Group  # ring and ulysses as one, in the order in which they hold the sequence
    batch: Group  # those and rows as one: who has all that a row needs, or shares it by weights
    whole: Group
    traffic: Traffic
    degrees: Degrees

    @classmethod
    def join(cls, degrees: Degrees, patience_s: float = EXCHANGE_S) -> "Mesh":
        """Find this process' place in a world of as many ranks. Called by all of them at once.

        patience_s: for which an exchange waits for the others.
        """
        rank = dist.get_rank() if degrees.ranks > 1 else 0
        sizes = (degrees.cfg, degrees.stages, degrees.ring, degrees.ulysses, degrees.tensor)
        place = _place(rank, sizes)
        traffic = Traffic()
        groups: dict[tuple[int, ...], Group] = {}

        def along(*axes: int) -> Group:
            numbers = tuple(
                other
                for other in range(degrees.ranks)
                if all(
                    there == here
                    for axis, (there, here) in enumerate(
                        zip(_place(other, sizes), place, strict=True)
                    )
                    if axis not in axes
                )
            )
            if numbers not in groups:
                groups[numbers] = Group(numbers, traffic, patience_s)
            return groups[numbers]

        return cls(
            rows=along(0),
            stages=along(1),
            ring=along(2),
            ulysses=along(3),
            tensor=along(4),
            sequence=along(2, 3),
            batch=along(0, 2, 3),
            whole=along(0, 1, 2, 3, 4),
            traffic=traffic,
            degrees=degrees,
        )

    def greet(self, device: torch.device) -> None:
        """Have every group speak once, before some of its members do. All call it at once."""
        groups = (self.rows, self.stages, self.ring, self.ulysses, self.tensor)
        together = (self.sequence, self.batch, self.whole)
        for group in dict.fromkeys(groups + together):  # the same may lie along several axes
            group.greet(device)


def _place(rank: int, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """A rank's number on every axis, the last counting fastest."""
    place = []
    for size in reversed(sizes):
        rank, number = divmod(rank, size)
        place.append(number)
    return tuple(reversed(place))
