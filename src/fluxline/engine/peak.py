"""How much memory something takes at its peak, and how much there is."""

import contextlib
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CONTAINER = Path("/sys/fs/cgroup")
"""Where Linux says what this container may have; elsewhere nothing is there."""


class Peak:
    """What was measured: bytes beside what was there before."""

    bytes = 0


@contextlib.contextmanager
def peak_of(device: torch.device) -> Iterator[Peak]:
    """Measure the peak of what is done inside, on the device of the calling thread's work.

    A card's allocator knows it, with what kernels take beside tensors. Elsewhere every new
    tensor is counted: nothing is known there of what kernels take for themselves.
    """
    peak = Peak()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        torch.cuda.synchronize(device)
        peak.bytes = torch.cuda.max_memory_allocated(device) - before
        return
    with _Tensors() as tensors:
        yield peak
    peak.bytes = tensors.peak


def free_bytes(device: torch.device) -> int:
    """Memory that tensors may still take: of the card, or of this machine or container."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + held
    free = int(psutil.virtual_memory().available)
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit
        limit = int((CONTAINER / "memory.max").read_text())
        free = min(free, limit - int((CONTAINER / "memory.current").read_text()))
    return max(free, 0)


class _Tensors(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own
    """Counts the storages that operations make, until they are let go."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known: dict[int, weakref.finalize[..., Any]] = {}
        self._bytes = 0
        self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:  # Any: whatever torch calls
        out = func(*args, **(kwargs or {}))
        given = {_key(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and (key := _key(leaf)) not in given | self._known.keys():
                storage = leaf.untyped_storage()
                self._bytes += storage.nbytes()
                self.peak = max(self.peak, self._bytes)
                gone = weakref.finalize(storage, self._let_go, key, storage.nbytes())
                self._known[key] = gone
        return out

    def _let_go(self, key: int, count: int) -> None:
        self._bytes -= count
        del self._known[key]


def _key(tensor: Tensor) -> int:
    key: int = tensor.untyped_storage()._cdata
    return key
