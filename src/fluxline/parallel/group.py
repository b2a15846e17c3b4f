"""Ranks that exchange tensors, this process one of them, and an account of what it sends.

Everything but sums goes from rank to rank in exact sizes: no padding, so that any number of tokens,
heads or rows can be cut for any number of ranks, and what is sent is what the formulas say.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from fluxline.degrees import shares as shares

EXCHANGE_S = 300.0  # that ranks wait for each other in the middle of a forward
LOST_S = 0.75  # in which whoever knows which rank is lost says so, and mostly ends all others
TIMED_OUT = "Timed out"  # as gloo says it
Waiting = Callable[[], list[Tensor]]
"""Blocks until what was begun is done, and gives what came."""


@dataclass(slots=True)
class Traffic:
    """What a rank has sent to others, since it was made."""

    bytes: int = 0
    messages: int = 0

    def count(self, tensor: Tensor, times: int = 1) -> None:
        """Write down that a tensor was sent so many times."""
        self.bytes += tensor.nbytes * times
        self.messages += times


class Group:
    """Some ranks of the world, in order. Thread: the engine's, the same calls on every member.

    ranks: their numbers in the world, this process' among them. A rank alone exchanges nothing.
    patience_s: for which an exchange waits for the others before it fails.
    """

    def __init__(
        self,
        ranks: Sequence[int],
        traffic: Traffic | None = None,
        patience_s: float = EXCHANGE_S,
    ) -> None:
        self.ranks = tuple(ranks)
        self.patience_s = patience_s
        self.size = len(self.ranks)
        self.traffic = traffic or Traffic()
        self.rank = 0
        self._group: dist.ProcessGroup | None = None
        if self.size > 1:
            self.rank = self.ranks.index(dist.get_rank())
            self._group = dist.new_group(
                list(ranks),
                timeout=timedelta(seconds=patience_s),  # the world's is not its groups'
                use_local_synchronization=True,
            )

    def greet(self, device: torch.device) -> None:
        """Have all members, who call this at once, speak once. device: where what they send lies.

        NCCL connects a group when it first speaks, and what only some members exchange then is
        undefined.
        """
        if self.size > 1:
            dist.all_reduce(torch.zeros(1, device=device), group=self._group)

    def exchange(
        self, sent: Mapping[int, Tensor], wanted: Mapping[int, Tensor]
    ) -> Callable[[], None]:
        """Begin to send tensors to members and to fill others with what members send.

        Nothing is sent where a tensor is empty. Neither may be touched until what comes back has
        been called.
        """
        kept = {peer: tensor.contiguous() for peer, tensor in sent.items() if tensor.numel()}
        operations = []
        for peer, tensor in wanted.items():
            if tensor.numel():
                operations.append(self._operation(dist.irecv, tensor, peer))
        for peer, tensor in kept.items():
            self.traffic.count(tensor)
            operations.append(self._operation(dist.isend, tensor, peer))
        with _after_who_is_lost():
            works = dist.batch_isend_irecv(operations) if operations else []

        def wait() -> None:
            with _after_who_is_lost():
                for work in works:
                    work.wait()
            kept.clear()

        return wait

    def begin_swap(self, parts: Sequence[Tensor], shapes: Sequence[Sequence[int]]) -> Waiting:
        """Begin to give each member its part and to get one of this shape from each."""
        came = [parts[self.rank].new_empty(tuple(shape)) for shape in shapes]
        came[self.rank] = parts[self.rank]
        others = [peer for peer in range(self.size) if peer != self.rank]
        wait = self.exchange({p: parts[p] for p in others}, {p: came[p] for p in others})

        def finish() -> list[Tensor]:
            wait()
            return came

        return finish

    def swap(self, parts: Sequence[Tensor], shapes: Sequence[Sequence[int]]) -> list[Tensor]:
        """Give each member its part, and get one of this shape from each (all-to-all)."""
        return self.begin_swap(parts, shapes)()

    def begin_gather(self, part: Tensor, lengths: Sequence[int], dim: int) -> Waiting:
        """Begin to give every member one's part; lengths: of each member's part along dim."""
        part = part.contiguous()
        shapes = [(*part.shape[:dim], length, *part.shape[dim + 1 :]) for length in lengths]
        return self.begin_swap([part] * self.size, shapes)

    def gather(self, part: Tensor, lengths: Sequence[int], dim: int) -> Tensor:
        """The parts of all members, side by side along dim."""
        if self.size == 1:
            return part
        return torch.cat(self.begin_gather(part, lengths, dim)(), dim)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all members, written into the tensor that is given."""
        if self.size > 1:
            with _after_who_is_lost():
                dist.all_reduce(tensor, group=self._group)
            self.traffic.bytes += 2 * tensor.nbytes * (self.size - 1) // self.size
            self.traffic.messages += 2 * (self.size - 1)
        return tensor

    def _operation(self, verb: Callable[..., object], tensor: Tensor, peer: int) -> dist.P2POp:
        return dist.P2POp(verb, tensor, self.ranks[peer], self._group)


@contextmanager
def _after_who_is_lost() -> Iterator[None]:
    """Hold back what an exchange fails with: most often that is a connection to a rank that has
    died, and whoever knows which, and of what, is to be heard first. Of one that ran out of time
    nobody knows more."""
    try:
        yield
    except Exception as exc:
        if TIMED_OUT not in str(exc):
            time.sleep(LOST_S)
        raise
