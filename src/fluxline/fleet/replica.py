"""What a service asks of a replica, whatever process or machine it runs on."""

from collections.abc import Callable
from typing import Literal, Protocol

from fluxline.ability import EngineStats, ModelInfo
from fluxline.errors import FluxlineError
from fluxline.request import Event, GenerationRequest

ReplicaState = Literal["unloaded", "starting", "ready", "restarting", "failed", "stopped"]
"""Unloaded: it holds no memory, and is loaded when it is wanted."""
Publish = Callable[[Event | FluxlineError], None]
"""Takes a request's events in order; an error instead means it was refused and nothing follows."""


class Replica(Protocol):
    """One engine, wherever it runs. Lives on one event loop; nothing here blocks it."""

    @property
    def state(self) -> ReplicaState:
        """Whether requests can be submitted now."""

    @property
    def reason(self) -> str:
        """Why it is not ready; empty when it is."""

    @property
    def models(self) -> tuple[ModelInfo, ...]:
        """What it serves; empty until it was ready once."""

    @property
    def ready(self) -> int:
        """How many engines can be given work now."""

    @property
    def restarts(self) -> int:
        """How often it had to be started again."""

    @property
    def stats(self) -> tuple[EngineStats, ...]:
        """What its engines have done since they were opened, one each."""

    def start(self) -> None:
        """Begin to load. Returns at once."""

    async def settled(self) -> ReplicaState:
        """Wait until it is ready, or never will be."""

    async def ended(self) -> None:
        """Wait until it has failed for good or was stopped."""

    def submit(self, request: GenerationRequest, publish: Publish) -> None:
        """Draw a request. `publish` is called on the event loop. Raises NotReady."""

    def cancel(self, request_id: str) -> None:
        """Stop drawing a request. An unknown id is ignored."""

    async def stop(self) -> None:
        """End. What is still open is published as failed."""
