"""The requests a replica holds: who gets which event, and who may be sent again after a death.

Pure bookkeeping. It starts no process and reads no clock.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from fluxline.errors import CapacityError, FluxlineError, WorkerDied
from fluxline.fleet.replica import Publish
from fluxline.request import (
    CancelledEvent,
    Event,
    Failed,
    GenerationRequest,
    ImageReady,
    Progress,
    Terminal,
)

MAX_ATTEMPTS = 3


@dataclass(slots=True, kw_only=True)
class Held:
    """One request between its submission and its end."""

    request: GenerationRequest
    publish: Publish
    deaths: int = 0  # workers that died while it may have been the cause
    is_sent: bool = False  # the living worker knows of it
    is_cancelled: bool = False  # its worker was told to stop it
    delivered: set[int] = field(default_factory=set)  # pictures its caller already has


class Holding:
    """All requests of one replica, in the order they came.

    When a worker dies, all it knew of is suspect: the word that one of them had begun may have
    died with it. Suspects are sent again one at a time and nothing beside them, so that a
    request that kills its worker is found out alone and no bystander is blamed three times.
    """

    def __init__(self) -> None:
        self._held: dict[str, Held] = {}

    @property
    def is_busy(self) -> bool:
        """Whether the worker was sent something that has not ended."""
        return any(held.is_sent for held in self._held.values())

    def add(self, request: GenerationRequest, publish: Publish) -> None:
        """Hold a new request."""
        self._held[request.id] = Held(request=request, publish=publish)

    def sendable(self) -> Iterator[GenerationRequest]:
        """Yield what the worker should be sent now, marking it as sent."""
        suspects = [held for held in self._held.values() if held.deaths]
        if not suspects:
            chosen = [held for held in self._held.values() if not held.is_sent]
        elif any(held.is_sent for held in self._held.values()):
            chosen = []
        else:
            chosen = [min(suspects, key=lambda held: held.deaths)]
        for held in chosen:
            held.is_sent = True
            yield held.request

    def route(self, event: Event) -> None:
        """Give an event to the request it is of. Events of requests not held are dropped."""
        held = self._held.get(event.request_id)
        if held is None:
            return
        match event:
            case ImageReady(image=image):
                if image.index in held.delivered:
                    return
                held.delivered.add(image.index)
            case Progress(index=index) if index in held.delivered:
                return
            case _ if isinstance(event, Terminal):
                del self._held[event.request_id]
        held.publish(event)

    def refuse(self, request_id: str, error: FluxlineError) -> None:
        """End a request with the error the engine refused it with."""
        if held := self._held.pop(request_id, None):
            held.publish(error)

    def cancel(self, request_id: str) -> bool:
        """Cancel a request; True when the worker must be told, which then ends it."""
        held = self._held.get(request_id)
        if held is None:
            return False
        if not held.is_sent:
            self.route(CancelledEvent(request_id))
            return False
        held.is_cancelled = True
        return True

    def worker_died(self) -> None:
        """Count the death against the suspects; fail those that had their attempts."""
        sent = [held for held in self._held.values() if held.is_sent]
        for held in sent:
            held.deaths += 1
            held.is_sent = False
            if held.is_cancelled:  # the word of its end died with the worker
                self.route(CancelledEvent(held.request.id))
            elif held.deaths == MAX_ATTEMPTS:
                self.route(_given_up(held.request.id))

    def fail_all(self, message: str) -> None:
        """End every request with a failure that another try elsewhere may not meet."""
        for request_id in list(self._held):
            self.route(Failed(request_id, CapacityError.code, message))


def _given_up(request_id: str) -> Failed:
    message = f"the worker died {MAX_ATTEMPTS} times while drawing request {request_id}"
    return Failed(request_id, WorkerDied.code, message)
