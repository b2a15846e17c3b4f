"""What somebody holds who waits for a request: its events, as they come."""

import asyncio
import queue
import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from fluxline.approximation import approximation_of
from fluxline.errors import InvalidParams
from fluxline.request import (
    Event,
    GenerationRequest,
    ImageReady,
    ImageResult,
    LoraRef,
    SamplingParams,
    Terminal,
    failure_of,
    random_seed,
)


class Ticket:
    """One reader's view of one request: iterate it once, with `for` or with `async for`.

    `put` may be called from any thread; the events end with Done, Failed or CancelledEvent.
    """

    def __init__(self, request_id: str, cancel: Callable[[str], None]) -> None:
        self.request_id = request_id
        self._cancel = cancel
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._woken = asyncio.Event()

    def put(self, event: Event) -> None:
        """Add an event and wake an asynchronous reader."""
        self._events.put(event)
        if (loop := self._loop) is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._woken.set)

    def cancel(self) -> None:
        """End the request before its next evaluation."""
        self._cancel(self.request_id)

    def __iter__(self) -> Iterator[Event]:
        while True:
            event = self._events.get()
            yield event
            if isinstance(event, Terminal):
                return

    async def __aiter__(self) -> AsyncIterator[Event]:
        self._loop = asyncio.get_running_loop()
        while True:
            self._woken.clear()
            while not self._events.empty():
                event = self._events.get()
                yield event
                if isinstance(event, Terminal):
                    return
            await self._woken.wait()

    def result(self) -> list[ImageResult]:
        """Wait for all pictures, in their order.

        Raises what one failed with, Cancelled if the request was cancelled.
        """
        images: list[ImageResult] = []
        for event in self:
            if isinstance(event, ImageReady):
                images.append(event.image)
            elif (error := failure_of(event)) is not None:
                raise error
        return sorted(images, key=lambda image: image.index)


def new_request(
    prompt: str,
    *,
    n: int = 1,
    top_k: int | None = None,
    seed: int | None = None,
    image: bytes | None = None,
    mask: bytes | None = None,
    references: Sequence[bytes] = (),
    params: Mapping[str, Any] | None = None,
) -> GenerationRequest:
    """Make a request with a fresh id and, unless given, a random seed.

    A LoRA among the params may be a name, (name, strength) or a LoraRef; parallel may be spelt.
    Raises InvalidParams for a parameter that does not exist.
    """
    params = dict(params or {})
    if isinstance(params.get("parallel"), str):
        params["parallel"] = approximation_of(params["parallel"])
    if params.get("loras") is not None:
        params["loras"] = tuple(_lora(given) for given in params["loras"])
    known = {field.name for field in fields(SamplingParams)}
    if unknown := sorted(set(params) - known):
        message = f"no parameter {unknown[0]!r}; there are {', '.join(sorted(known))}"
        raise InvalidParams(message, field=unknown[0])
    return GenerationRequest(
        id=secrets.token_hex(8),
        prompt=prompt,
        seed=random_seed() if seed is None else seed,
        n=n,
        top_k=top_k,
        source=image,
        mask=mask,
        references=tuple(references),
        params=SamplingParams(**params),
    )


def _lora(given: str | tuple[str, float] | LoraRef) -> LoraRef:
    if isinstance(given, LoraRef):
        return given
    return LoraRef(given) if isinstance(given, str) else LoraRef(*given)
