"""How much work a key may ask for in a minute, kept as a bucket that fills by the second."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fluxline.errors import QueueFull


class Quota:
    """A bucket for each owner, as large as a minute's share. Work larger than that is owed."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}  # level, when

    @contextmanager
    def spent(self, owner: str, rate: float | None, cost: float) -> Iterator[None]:
        """Take the cost of a request out, and put it back if the request is refused all the same.

        rate: cost a minute; None: no limit. Raises QueueFull if the bucket is empty.
        """
        if rate is None:
            yield
            return
        now = self._clock()
        level, then = self._buckets.get(owner, (rate, now))
        level = min(level + (now - then) * rate / 60, rate)
        if level <= 0:
            wait_s = 60 * (1 - level) / rate
            raise QueueFull("this key has used up its share of this minute", retry_after_s=wait_s)
        self._buckets[owner] = (level - cost, now)
        try:
            yield
        except BaseException:
            level, then = self._buckets[owner]
            self._buckets[owner] = (level + cost, then)
            raise
