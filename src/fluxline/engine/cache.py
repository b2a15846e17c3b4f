"""A least-recently-used cache bounded by bytes: what encoders made of prompts and pictures."""

from collections import OrderedDict
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    """Anything that knows how much memory it holds."""

    @property
    def bytes(self) -> int:
        """Memory it holds."""
        ...


ValueT = TypeVar("ValueT", bound=Sized)


class ByteLRU(Generic[ValueT]):
    """Keeps the values used last whose bytes together fit. Thread: its owner's."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._values: OrderedDict[str, ValueT] = OrderedDict()
        self.bytes = 0

    def get(self, key: str) -> ValueT | None:
        """The value, now the most recently used one."""
        if key in self._values:
            self._values.move_to_end(key)
        return self._values.get(key)

    def put(self, key: str, value: ValueT) -> None:
        """Keep a value, and let go of the oldest until all fit; one that never fits is not kept."""
        self._forget(key)
        if value.bytes > self._limit:
            return
        self._values[key] = value
        self.bytes += value.bytes
        while self.bytes > self._limit:
            self._forget(next(iter(self._values)))

    def _forget(self, key: str) -> None:
        if (old := self._values.pop(key, None)) is not None:
            self.bytes -= old.bytes
