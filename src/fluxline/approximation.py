"""How ranks may draw a picture without waiting for each other: what a request's `parallel` says.

Values only; who draws so is `parallel.stale` and `parallel.pipefusion`.
"""

from dataclasses import dataclass, replace
from typing import Literal, cast, get_args

from fluxline.degrees import shares
from fluxline.errors import InvalidParams

ApproximationName = Literal["piflux", "distrifusion", "pipefusion"]

USUAL_SYNC = 0.1  # of all evaluations; pipefusion, whose stages idle meanwhile, has one
MOST = 9999  # evaluations that may be named
FEWEST_PER_RANK = 4  # evaluations that piflux wants, or parts would wander by hardly once


@dataclass(frozen=True, slots=True, kw_only=True)
class Approximation:
    """One way to approximate. Raises InvalidParams.

    sync: evaluations at the beginning that are exact; None: as many as suit, see `settled`. every:
    of piflux: after those, each so many evaluations one is exact; 0: none.
    """

    mode: ApproximationName
    sync: int | None = None
    every: int = 0

    def __post_init__(self) -> None:
        for name, value, least in (("sync", self.sync, 1), ("every", self.every, 0)):
            if value is not None and (type(value) is not int or not least <= value <= MOST):
                message = f"parallel: {name} must be a whole number from 1 to {MOST}; got {value!r}"
                raise InvalidParams(message, field="parallel")
        if self.every and self.mode != "piflux":
            message = f"parallel: every is piflux's; {self.mode} has none"
            raise InvalidParams(message, field="parallel")

    @property
    def spelt(self) -> str:
        """As `approximation_of` reads it."""
        said: str = self.mode
        said += f",sync={self.sync}" if self.sync is not None else ""
        return said + (f",every={self.every}" if self.every else "")

    def settled(self, evaluations: int, ranks: int) -> "Approximation":
        """With its exact evaluations counted, for a picture of so many on so many ranks.

        `usual_sync` of them, unless it says. Raises InvalidParams.
        """
        if self.sync is not None:
            if self.sync > evaluations:
                message = f"parallel: sync must be at most the evaluations, {evaluations}"
                raise InvalidParams(f"{message}; got {self.sync}", field="parallel")
            return self
        if self.mode == "piflux" and evaluations < FEWEST_PER_RANK * ranks and not self.every:
            message = f"piflux on {ranks} ranks wants {FEWEST_PER_RANK * ranks} evaluations or more"
            beside = "ask for more steps, or say how many are exact: piflux,sync=2"
            raise InvalidParams(f"{message}; got {evaluations}: {beside}", field="parallel")
        return replace(self, sync=usual_sync(self.mode, evaluations))

    def time(self, evaluations: int, ranks: int) -> float:
        """How long a picture of so many takes ranks, in evaluations of one device; transfers
        hidden, blocks cut evenly.

        piflux and distrifusion skip nothing: a rank has its part of every evaluation, as of those
        that are exact. pipefusion's stages wait for each other in the first and while they fill.
        """
        if self.mode != "pipefusion":
            return evaluations / ranks
        warmup = self.sync or usual_sync(self.mode, evaluations)
        return time_of(evaluations, warmup, parts=ranks + 1, stages=ranks)


def remembered(mode: ApproximationName, blocks: int, ranks: int) -> int:
    """Of how many blocks the rank that holds most has keys and values, of all tokens.

    Of distrifusion those that are coming, too; of pipefusion its own.
    """
    if mode == "pipefusion":
        return shares(blocks, ranks)[0]
    return 2 * blocks if mode == "distrifusion" else blocks


def time_of(evaluations: int, warmup: int, parts: int, stages: int) -> float:
    """How long pipefusion takes, in evaluations of one device; transfers hidden, parts equal.

    With fewer parts than stages some wait for a part to come round.
    """
    beyond = evaluations - warmup
    if beyond <= 0:
        return float(evaluations)
    ticks = (beyond - 1) * max(parts, stages) + parts + stages - 1
    return warmup + ticks / (parts * stages)


def usual_sync(mode: ApproximationName, evaluations: int) -> int:
    """How many of a picture's evaluations are exact, if nobody says."""
    return 1 if mode == "pipefusion" else max(1, round(USUAL_SYNC * evaluations))


def approximation_of(text: str) -> Approximation:
    """Read "piflux,sync=2,every=8". Raises InvalidParams."""
    mode, *said = (word.strip() for word in text.split(","))
    if mode not in get_args(ApproximationName):
        known = ", ".join(get_args(ApproximationName))
        message = f"parallel of a picture must be one of {known}; got {mode[:40]!r}"
        message += " (ranks are the server's)" if "=" in mode else ""
        raise InvalidParams(message, field="parallel")
    counts: dict[str, int] = {}
    for word in said:
        name, _, count = word.partition("=")
        if name not in ("sync", "every") or name in counts:
            message = f"{mode} may have sync=N and every=N, once each; got {word[:40]!r}"
            raise InvalidParams(message, field="parallel")
        if not count.isascii() or not count.isdigit() or not 1 <= int(count[:6]) <= MOST:
            message = (
                f"parallel: {name} must be a whole number from 1 to {MOST}; got {count[:40]!r}"
            )
            raise InvalidParams(message, field="parallel")
        counts[name] = int(count)
    return Approximation(mode=cast(ApproximationName, mode), **counts)
