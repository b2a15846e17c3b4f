"""Says when a worker hangs: it lives, but says nothing, or its engine gets nowhere.

Pure bookkeeping. It kills nothing and reads no clock.
"""

from dataclasses import dataclass

from fluxline import wire
from fluxline.ability import EngineStats

TIMES_A_BATCH = 20.0  # what an engine may take for one step, in full batches as it measured them


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How many looks, one every look_s, find nothing before a worker is taken to hang.

    Looks are counted instead of seconds, so that a machine that slept blames nobody. silent_s: of
    a worker that should say at least what it has done. stuck_s: of an engine that has work; None:
    for ever.
    """

    look_s: float = 1.0
    silent_s: float = 60.0
    stuck_s: float | None = 900.0


class Watch:
    """Over one worker that is ready."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._silent = self._still = 0  # looks in a row
        self._stats = EngineStats()

    def heard(self, message: wire.FromWorker) -> None:
        """Take note of a message. Only word of its work says that the engine gets somewhere."""
        self._silent = 0
        if not isinstance(message, wire.Told):
            self._still = 0
            return
        if message.stats.forwards != self._stats.forwards:
            self._still = 0
        self._stats = message.stats

    def look(self, *, has_work: bool) -> str:
        """Look once; say how it hangs, or nothing."""
        patience = self._patience
        self._silent += 1
        self._still = self._still + 1 if has_work else 0
        if self._silent * patience.look_s > patience.silent_s:
            return f"said nothing for {patience.silent_s:g} s"
        limit_s = self._longest_step_s()
        if limit_s is not None and self._still * patience.look_s > limit_s:
            return f"got nowhere for {limit_s:.0f} s"
        return ""

    def _longest_step_s(self) -> float | None:
        """For which an engine with work may finish nothing."""
        least_s, stats = self._patience.stuck_s, self._stats
        if least_s is None or not stats.tokens:
            return least_s
        batch_s = stats.batch_tokens * stats.evaluated_s / stats.tokens
        return max(least_s, TIMES_A_BATCH * batch_s)
