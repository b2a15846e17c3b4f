"""What this machine has and uses, for people and probes."""

from collections.abc import Iterable

import psutil

from fluxline.request import EngineStats

GIB = 2**30


def cpu_percent() -> float:
    """Load of all cores since the last call, 0 to 100."""
    return float(psutil.cpu_percent(interval=None))


def memory_gb(engines: Iterable[EngineStats]) -> dict[str, float]:
    """Memory in GiB. vram_usage_gb: of the cards that the engines run on."""
    memory = psutil.virtual_memory()
    return {
        "vram_usage_gb": sum(stats.device_bytes_reserved for stats in engines) / GIB,
        "system_memory_used_gb": memory.used / GIB,
        "system_memory_total_gb": memory.total / GIB,
    }
