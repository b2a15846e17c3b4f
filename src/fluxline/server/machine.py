"""What this machine has and uses, for people and probes."""

from collections.abc import Iterable
from dataclasses import dataclass

import psutil

from fluxline.ability import EngineStats

MIB, GIB = 2**20, 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """The memory of this machine, and what the engines hold of their cards'."""

    vram_used_bytes: int
    ram_used_bytes: int
    ram_total_bytes: int


def memory_of(engines: Iterable[EngineStats]) -> Memory:
    """Look at the memory now."""
    ram = psutil.virtual_memory()
    return Memory(
        vram_used_bytes=sum(stats.device_bytes_reserved for stats in engines),
        ram_used_bytes=ram.used,
        ram_total_bytes=ram.total,
    )


def cpu_percent() -> float:
    """Load of all cores since the last call, 0 to 100."""
    return float(psutil.cpu_percent(interval=None))
