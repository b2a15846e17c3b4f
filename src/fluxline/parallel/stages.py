"""Ranks one after another, each passing on to the next what it has made; the last to the first."""

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from fluxline.degrees import part_of
from fluxline.parallel.group import Group


class Stages:
    """The ranks of a group as stages. Made once, by all of them. Thread: the engine's.

    What crosses a boundary shares a lane with nothing on either side of it: on a GPU, messages of
    one group go in the order in which they were begun, and the one to come would hold up the one to
    go. device: where what is sent lies.
    """

    def __init__(self, group: Group, device: torch.device) -> None:
        self.count, self.rank = group.size, group.rank
        self._group = group
        self._lanes: list[Group] = []
        self._under_way: deque[Callable[[], None]] = deque()
        if group.size > 1:
            self._lanes = [Group(group.ranks, group.traffic, group.patience_s) for _ in range(3)]
            for lane in self._lanes:
                lane.greet(device)

    @property
    def is_first(self) -> bool:
        """Whether this rank has the first stage."""
        return self.rank == 0

    @property
    def is_last(self) -> bool:
        """Whether this rank has the last stage."""
        return self.rank == self.count - 1

    def share(self, blocks: int) -> slice:
        """The blocks of this stage. Each is as much work, and the last stage has more beside."""
        return part_of(blocks, self.count, self.rank)

    def receive(self, wanted: Tensor) -> Callable[[], None]:
        """Begin to fill a tensor with what the stage before sends; call what comes back to wait."""
        before = (self.rank - 1) % self.count
        return self._lane(before).exchange({}, {before: wanted})

    def send(self, tensor: Tensor, ahead: int = 1) -> None:
        """Send to the stage after, and go on with so many messages under way."""
        while len(self._under_way) >= ahead:
            self._under_way.popleft()()
        after = (self.rank + 1) % self.count
        self._under_way.append(self._lane(self.rank).exchange({after: tensor}, {}))

    def tell(self, tensor: Tensor) -> Tensor:
        """What the last stage has, given to all; the others give something of its shape."""
        while self._under_way:
            self._under_way.popleft()()
        last = self.count - 1
        if self.is_last:
            self._group.exchange(dict.fromkeys(range(last), tensor), {})()
        else:
            self._group.exchange({}, {last: tensor})()
        return tensor

    def _lane(self, boundary: int) -> Group:
        """The group of what leaves a stage: neighbours take turns, the way back has its own."""
        return self._lanes[2 if boundary == self.count - 1 else boundary % 2]
