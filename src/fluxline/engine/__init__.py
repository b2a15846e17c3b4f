"""The engine: turns requests into pictures, many at once. Knows nothing of HTTP or users."""

from collections.abc import Callable

from fluxline.engine.engine import Engine
from fluxline.engine.scheduler import Budget
from fluxline.engine.ticket import Ticket
from fluxline.engine.tune import keep_memory

__all__ = ["Budget", "Engine", "Ticket", "keep_memory", "open_engine"]


def open_engine(
    model: str, device: str, on_lost: Callable[[], None], precision: str = "auto"
) -> Engine:
    """Open an engine as a worker asks for one. Raises LoadError."""
    keep_memory()
    return Engine(model, device=device, precision=precision, on_lost=on_lost)
