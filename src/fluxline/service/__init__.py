"""The life of a request: admitted, recorded, dispatched, collected, stored, answered."""

from fluxline.service.feed import Ticket
from fluxline.service.loras import Loras, lacks
from fluxline.service.record import Drawn
from fluxline.service.service import Finished, Service
from fluxline.service.terms import Caller, Standing, Status, Terms, Wish

__all__ = [
    "Caller",
    "Finished",
    "Drawn",
    "Loras",
    "lacks",
    "Service",
    "Standing",
    "Status",
    "Terms",
    "Ticket",
    "Wish",
]
