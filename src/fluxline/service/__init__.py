"""The life of a request: admitted, recorded, dispatched, collected, stored, answered."""

from fluxline.service.feed import Ticket
from fluxline.service.record import Drawn
from fluxline.service.service import Caller, Service, Status, Terms

__all__ = ["Caller", "Drawn", "Service", "Status", "Terms", "Ticket"]
