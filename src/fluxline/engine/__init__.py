"""The engine: turns requests into pictures, many at once. Knows nothing of HTTP or users."""

from collections.abc import Callable
from pathlib import Path

from fluxline import wire
from fluxline.degrees import Degrees
from fluxline.engine.engine import Engine
from fluxline.engine.loras import LoraSources
from fluxline.engine.ranks import OnLost, StartRank, follow, gather, lead
from fluxline.engine.scheduler import Budget
from fluxline.engine.ticket import Ticket
from fluxline.engine.tune import keep_memory
from fluxline.linear.lora import LIMIT_BYTES
from fluxline.request import MemoryName

__all__ = [
    "Budget",
    "Engine",
    "LoraSources",
    "Ticket",
    "follow",
    "gather",
    "keep_memory",
    "lead",
    "open_engine",
]


def open_engine(
    model: str,
    device: str,
    on_lost: Callable[[], None],
    *,
    precision: str = "auto",
    memory: MemoryName = "auto",
    weights_gb: float | None = None,
    loras: Path | None = None,
    lora_bytes: int = LIMIT_BYTES,
    fetches_loras: bool = False,
    parallel: Degrees | None = None,
    start_rank: StartRank | None = None,
    on_rank_lost: OnLost | None = None,
) -> Engine:
    """Open an engine as a worker asks for one: who asks it to draw names no paths.

    parallel: how many ranks draw together; start_rank starts the others, which else have been
    started as this one was, and on_rank_lost is told why when one is lost. Raises LoadError.
    """
    keep_memory()
    crew, tell = None, None
    if parallel is not None and on_rank_lost is not None:
        opening = wire.Open(model, parallel.spelt, precision, memory, weights_gb)
        if start_rank is None:
            crew, line = lead(opening, device, on_rank_lost)
        else:
            crew, line = gather(opening, device, start_rank, on_rank_lost)
        tell = line.tell
    sources = LoraSources(folder=loras, paths=False, fetch=fetches_loras, cache_bytes=lora_bytes)
    return Engine(
        model,
        device=device,
        precision=precision,
        memory=memory,
        weights_gb=weights_gb,
        loras=sources,
        on_lost=on_lost,
        crew=crew,
        tell=tell,
    )
