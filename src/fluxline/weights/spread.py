"""Weights over several devices: each unit stays on one, and what it reads is carried to it.

It makes room, not speed: one device computes at a time. Many pictures are better served by a
replica on each, one picture by the parallel modes.
"""

from collections.abc import Collection, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only


def spread(
    components: Sequence[Sequence[nn.Module]],
    devices: Sequence[torch.device],
    *,
    chains: Collection[int] = (),
) -> None:
    """Put the units of components on devices, in their order, as much on each as on the others.

    Whatever a unit reads is carried to where it lies, and what it gives comes back to the first
    device, where the rest is. chains: components, by their numbers, of which nobody but the next
    unit reads what a unit gives; that stays where it is, and only the last one's comes back.
    """
    units = [unit for component in components for unit in component]
    numbers = shares([size_of(unit) for unit in units], len(devices))
    for unit, number in zip(units, numbers, strict=True):
        unit.to(devices[number])
        unit.register_forward_pre_hook(_carry_in(devices[number]), with_kwargs=True)
    for number, component in enumerate(components):
        for unit in component[-1:] if number in chains else component:
            unit.register_forward_hook(_carry_out(devices[0]))


def shares(sizes: Sequence[int], count: int) -> list[int]:
    """Cut a row of sizes into `count` runs of nearly equal sums: the number of each one's run."""
    total = sum(sizes) or 1
    middles = [end - size / 2 for size, end in zip(sizes, accumulate(sizes), strict=True)]
    return [min(int(middle * count / total), count - 1) for middle in middles]


def size_of(module: nn.Module) -> int:
    """Bytes of a module's weights."""
    return sum(weight.nbytes for weight in (*module.parameters(), *module.buffers()))


def _carry_in(device: torch.device) -> Any:  # Any: torch's kind of hook
    def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
        return tree_map_only(Tensor, lambda tensor: tensor.to(device), (args, kwargs))

    return hook


def _carry_out(device: torch.device) -> Any:  # Any: torch's kind of hook
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        return tree_map_only(Tensor, lambda tensor: tensor.to(device), output)

    return hook
