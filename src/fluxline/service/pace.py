"""How fast pictures come, learned from those that came: cost into seconds."""

import math
import time
from collections.abc import Callable

LONGEST_RETRY_S = 120.0  # official clients give up on a longer one
MEMORY = 0.9  # weight of what came before, at every picture


class Pace:
    """Seconds per unit of cost while there was work, recent pictures counting most."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seconds, self._cost = 0.0, 0.0
        self._last = 0.0

    def begin(self, active: int) -> None:
        """Take note of a new request, `active` counting it."""
        if active == 1:
            self._last = self._clock()

    def picture(self, cost: float) -> None:
        """Take note of a finished picture."""
        now = self._clock()
        self._seconds = MEMORY * self._seconds + (now - self._last)
        self._cost = MEMORY * self._cost + cost
        self._last = now

    def seconds(self, cost: float) -> float:
        """Predict how long so much work takes. 0 as long as nothing was drawn."""
        return cost * self._seconds / self._cost if self._cost else 0.0

    def retry_s(self, cost: float) -> float:
        """Whole seconds until so much work is done, from 1 to the longest worth telling."""
        return float(min(max(math.ceil(self.seconds(cost)), 1), LONGEST_RETRY_S))
