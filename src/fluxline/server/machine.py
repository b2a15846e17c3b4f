"""What this machine has and uses, for people and probes."""

import psutil

GIB = 2**30


def memory_gb(device: str) -> dict[str, float | None]:
    """Memory in GiB. vram_usage_gb: of the card; a model on the CPU uses none."""
    memory = psutil.virtual_memory()
    return {
        "vram_usage_gb": 0.0 if device.startswith("cpu") else None,
        "system_memory_used_gb": memory.used / GIB,
        "system_memory_total_gb": memory.total / GIB,
    }
