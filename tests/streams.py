"""`torch.cuda` of cards that are not there, and the order in which streams would do their work.

What one stream reads that another has written without an event between is a fault, and so is memory
that goes back to the stream it was made on while another may still read it.
"""

import contextlib
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

FREE_BYTES = 64 * 2**30


class Race(RuntimeError):
    """What a real card would have computed with anything."""


Clock = dict[int, int]
"""How far each stream, by its number, is known to be."""


@dataclass(slots=True, eq=False)
class Stream:
    """Work that is done in its order."""

    all: "Streams"
    number: int
    clock: Clock = field(default_factory=dict)

    def record_event(self) -> Clock:
        """What is done once all begun here is."""
        return dict(self.clock)

    def wait_event(self, event: Clock) -> None:
        """Begin nothing more here before that."""
        _merge(self.clock, event)

    def synchronize(self) -> None:
        """Have the host wait."""
        for stream in self.all.streams:
            _merge(stream.clock, self.clock)

    def tick(self) -> int:
        """Begin another piece of work."""
        self.clock[self.number] = self.clock.get(self.number, 0) + 1
        return self.clock[self.number]


@dataclass(slots=True)
class Life:
    """What happened to some memory."""

    made_on: Stream
    written: tuple[int, int]  # by which stream, as its how many-th piece of work
    readers: set[int] = field(default_factory=set)


class Streams:
    """All of a process. early: memory that was let go too early."""

    def __init__(self) -> None:
        self.streams = [Stream(self, 0)]
        self.current = self.streams[0]
        self.early: list[str] = []

    def new(self, device: Any = None) -> Stream:
        """Another one."""
        self.streams.append(Stream(self, len(self.streams)))
        return self.streams[-1]

    @contextlib.contextmanager
    def within(self, stream: Stream | None) -> Iterator[None]:
        """Do what is begun inside on a stream."""
        before, self.current = self.current, stream or self.current
        try:
            yield
        finally:
            self.current = before

    def synchronize(self, device: Any = None) -> None:
        """Have the host wait for all."""
        for stream in self.streams:
            stream.synchronize()

    def read(self, tensor: Tensor) -> None:
        """Read a card's tensor on the current stream."""
        life = getattr(tensor.untyped_storage(), "life", None)
        if life is None or life.made_on.all is not self:  # kept since another test: long written
            return
        writer, tick = life.written
        if self.current.clock.get(writer, 0) < tick:
            raise Race(f"stream {self.current.number} reads what stream {writer} may still write")
        if self.current is not life.made_on:
            life.readers.add(self.current.number)

    def written(self, tensor: Tensor) -> None:
        """Write a card's tensor on the current stream."""
        storage, tick = tensor.untyped_storage(), self.current.tick()
        if (life := getattr(storage, "life", None)) is not None:
            life.written = self.current.number, tick
            return
        storage.life = life = Life(self.current, (self.current.number, tick))
        weakref.finalize(storage, self._let_go, life)

    def lend(self, tensor: Tensor, stream: Stream) -> None:
        """Let a stream read a tensor's memory after it is let go (`record_stream`)."""
        tensor.untyped_storage().life.readers.add(-stream.number - 1)

    def _let_go(self, life: Life) -> None:
        for reader in (number for number in life.readers if number >= 0):
            if -reader - 1 not in life.readers:
                self.early.append(f"stream {reader} may still read memory of {life.made_on.number}")


def pretend(
    monkeypatch: pytest.MonkeyPatch, *, count: int = 1, capability: tuple[int, int] = (9, 0)
) -> Streams:
    """Have torch say that there are so many cards, all of whose memory is free."""
    streams = Streams()
    told = {
        "is_available": lambda: True,
        "device_count": lambda: count,
        "set_device": lambda device: None,
        "synchronize": streams.synchronize,
        "Stream": streams.new,
        "stream": streams.within,
        "current_stream": lambda device=None: streams.current,
        "get_device_capability": lambda device=None: capability,
        "get_device_name": lambda device=None: "a card",
        "is_bf16_supported": lambda including_emulation=True: capability >= (8, 0),
        "mem_get_info": lambda device=None: (FREE_BYTES, FREE_BYTES),
        "memory_allocated": lambda device=None: 0,
        "memory_reserved": lambda device=None: 0,
        "max_memory_allocated": lambda device=None: 2**20,
        "reset_peak_memory_stats": lambda device=None: None,
        "empty_cache": lambda: None,
    }
    for name, answer in told.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    monkeypatch.setattr(Tensor, "record_stream", lambda self, stream: streams.lend(self, stream))
    return streams


def _merge(clock: Clock, other: Clock) -> None:
    for number, tick in other.items():
        clock[number] = max(clock.get(number, 0), tick)
