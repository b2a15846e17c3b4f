"""The life of a request: admitted, recorded, dispatched, collected, stored, answered."""

from fluxline.service.feed import Ticket
from fluxline.service.loras import Loras
from fluxline.service.record import Drawn
from fluxline.service.service import Drawing, Service
from fluxline.service.terms import Caller, Status, Terms

__all__ = ["Caller", "Drawing", "Drawn", "Loras", "Service", "Status", "Terms", "Ticket"]
