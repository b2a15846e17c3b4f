"""The engine: turns requests into pictures, many at once. Knows nothing of HTTP or users."""

from collections.abc import Callable
from pathlib import Path

from fluxline.engine.engine import Engine
from fluxline.engine.loras import CACHE_BYTES, LoraSources
from fluxline.engine.scheduler import Budget
from fluxline.engine.ticket import Ticket
from fluxline.engine.tune import keep_memory
from fluxline.request import MemoryName

__all__ = ["Budget", "Engine", "LoraSources", "Ticket", "keep_memory", "open_engine"]


def open_engine(
    model: str,
    device: str,
    on_lost: Callable[[], None],
    *,
    precision: str = "auto",
    memory: MemoryName = "auto",
    weights_gb: float | None = None,
    loras: Path | None = None,
    lora_bytes: int = CACHE_BYTES,
    fetches_loras: bool = False,
) -> Engine:
    """Open an engine as a worker asks for one: who asks it to draw names no paths.

    Raises LoadError.
    """
    keep_memory()
    sources = LoraSources(folder=loras, paths=False, fetch=fetches_loras, cache_bytes=lora_bytes)
    return Engine(
        model,
        device=device,
        precision=precision,
        memory=memory,
        weights_gb=weights_gb,
        loras=sources,
        on_lost=on_lost,
    )
