"""The engine: turns requests into pictures, many at once. Knows nothing of HTTP or users."""

from fluxline.engine.engine import Engine
from fluxline.engine.ticket import Ticket

__all__ = ["Engine", "Ticket", "open_engine"]


def open_engine(model: str, device: str, queue_limit: int) -> Engine:
    """Open an engine as a worker asks for one. Raises LoadError."""
    return Engine(model, device=device, queue_limit=queue_limit)
