"""Weights that lie at home, in the machine's memory, and visit the device when they are needed.

A model names its *units*, a row of them for each of its components: modules that are called in that
order every time, such as the blocks of a transformer. When a unit is called its weights are
brought; while it computes those of the next one are on their way; who has to leave for them is
whoever is needed last. So with room for all but a few, all but those few stay. Nothing of the
mathematics knows: the same modules compute the same.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(slots=True, eq=False)
class _Unit:
    module: nn.Module
    component: int
    place: int  # in its component
    homes: list[tuple[Tensor, Tensor]]  # each weight, and its data at home
    bytes: int
    is_here: bool = False
    arrival: Any = None  # a CUDA event: when its weights have come
    lent: list[Tensor] = field(default_factory=list)  # on the device


class Visits:
    """Brings units to a device as they are called. Thread: the engine's.

    components: their units, which are expected at home, on the CPU. budget_bytes: of all weights
    that visit at once; a unit larger than that comes alone. together: all units of a component come
    and go as one.
    """

    def __init__(
        self,
        components: Sequence[Sequence[nn.Module]],
        device: torch.device,
        *,
        budget_bytes: int,
        together: bool = False,
    ) -> None:
        self._device, self._budget, self._together = device, budget_bytes, together
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._components = [
            [self._unit(module, number, place) for place, module in enumerate(units)]
            for number, units in enumerate(components)
        ]
        self._last_used = [0] * len(components)
        self._calls = 0
        self.moved_bytes = 0  # brought so far
        self.here_bytes = 0  # visiting now
        for unit in self._units():
            unit.module.register_forward_pre_hook(lambda *_, unit=unit: self._call(unit))

    @property
    def awaited_bytes(self) -> int:
        """What may yet come beside what is here: not free, though nothing lies there now."""
        alone = [[unit] for unit in self._units()]
        parts = self._components if self._together else alone
        sizes = [sum(unit.bytes for unit in part) for part in parts]
        most = max(*sizes, min(self._budget, sum(sizes)))
        return most - self.here_bytes

    def fill(self) -> None:
        """Let as many come as there is room for, of the largest component."""
        for unit in max(self._components, key=lambda units: sum(unit.bytes for unit in units)):
            if self.here_bytes + unit.bytes <= self._budget:
                self._fetch(unit)
        if self._copies is not None:
            self._copies.synchronize()

    def _unit(self, module: nn.Module, component: int, place: int) -> _Unit:
        weights = [*module.parameters(), *module.buffers()]
        pinned = self._copies is not None
        homes = [
            (weight, weight.data.pin_memory() if pinned else weight.data) for weight in weights
        ]
        for weight, home in homes:
            weight.data = home
        return _Unit(module, component, place, homes, sum(home.nbytes for _, home in homes))

    def _units(self) -> Iterator[_Unit]:
        return chain.from_iterable(self._components)

    def _call(self, unit: _Unit) -> None:
        """See that a unit's weights are here, and let those of the next one come."""
        self._calls += 1
        self._last_used[unit.component] = self._calls
        members = self._components[unit.component]
        wanted = members if self._together else [unit]
        self._bring(wanted, for_whom=unit)
        if self._copies is not None:
            for one in wanted:
                torch.cuda.current_stream(self._device).wait_event(one.arrival)
        following = members[(unit.place + 1) % len(members)]
        if not self._together and self._has_room_beside(unit, following):
            self._bring([following], for_whom=unit)

    def _has_room_beside(self, unit: _Unit, following: _Unit) -> bool:
        return unit.bytes + following.bytes <= self._budget

    def _bring(self, wanted: list[_Unit], *, for_whom: _Unit) -> None:
        absent = [unit for unit in wanted if not unit.is_here]
        needed = sum(unit.bytes for unit in absent)
        stay = {id(unit) for unit in (*wanted, for_whom)}
        for guest in self._leaving(for_whom):
            if self.here_bytes + needed <= self._budget:
                break
            if id(guest) not in stay:
                self._send_home(guest)
        for unit in absent:
            self._fetch(unit)

    def _leaving(self, current: _Unit) -> list[_Unit]:
        """Who is here, in the order of leaving: other components by how long ago they were used,
        then of this one who is called again last."""
        length = len(self._components[current.component])

        def order(unit: _Unit) -> tuple[int, int]:
            if unit.component != current.component:
                return self._last_used[unit.component], 0
            return self._calls, -((unit.place - current.place) % length)

        return sorted((unit for unit in self._units() if unit.is_here), key=order)

    def _fetch(self, unit: _Unit) -> None:
        with torch.cuda.stream(self._copies):
            unit.lent = [
                home.to(self._device, non_blocking=True, copy=True) for _, home in unit.homes
            ]
            if self._copies is not None:
                unit.arrival = self._copies.record_event()
        if self._copies is not None:
            for lent in unit.lent:  # computing ends before their memory is used again
                lent.record_stream(torch.cuda.current_stream(self._device))
        for (weight, _), lent in zip(unit.homes, unit.lent, strict=True):
            weight.data = lent
        unit.is_here = True
        self.here_bytes += unit.bytes
        self.moved_bytes += unit.bytes

    def _send_home(self, unit: _Unit) -> None:
        """Weights are never written, so nothing is carried back."""
        for weight, home in unit.homes:
            weight.data = home
        unit.lent, unit.is_here = [], False
        self.here_bytes -= unit.bytes
