"""How many ranks draw together, and along which axes: what `--parallel` says. Values only."""

from dataclasses import dataclass, fields
from typing import Literal, get_args

from fluxline.errors import InvalidParams

AxisName = Literal["data", "cfg", "stages", "ring", "ulysses", "tensor"]
MOST_RANKS = 256
AUTO = "auto"
"""In place of degrees: those that a cost model finds best for the machine at hand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Degrees:
    """Ranks along each axis; all but `data` make one replica together.

    data: replicas. cfg: parts of a forward's rows. ring, ulysses: parts of its tokens, that attend
    to each other by passing keys around or by trading tokens for heads. tensor: parts of weights.
    stages: runs of blocks, in place of those three.
    """

    data: int = 1
    cfg: int = 1
    stages: int = 1
    ring: int = 1
    ulysses: int = 1
    tensor: int = 1

    @property
    def ranks(self) -> int:
        """Of one replica."""
        return self.cfg * self.stages * self.sequence * self.tensor

    @property
    def sequence(self) -> int:
        """Parts of the tokens."""
        return self.ring * self.ulysses

    @property
    def spelt(self) -> str:
        """As `degrees_of` reads it; empty: one rank alone."""
        said = ((f.name, getattr(self, f.name)) for f in fields(self))
        return ",".join(f"{axis}={count}" for axis, count in said if count > 1)


def degrees_of(text: str) -> Degrees:
    """Read "ulysses=2,ring=2". Raises InvalidParams."""
    axes = get_args(AxisName)
    degrees: dict[str, int] = {}
    for word in filter(None, (word.strip() for word in text.split(","))):
        axis, _, count = word.partition("=")
        if axis not in axes:
            message = f"parallel must be of {', '.join(axes)}; got {axis!r}"
            raise InvalidParams(message, field="parallel")
        if axis in degrees:
            raise InvalidParams(f"parallel says {axis} twice", field="parallel")
        if not count.isascii() or not count.isdigit() or not 1 <= int(count) <= MOST_RANKS:
            message = (
                f"parallel: {axis} must be a whole number from 1 to {MOST_RANKS}; got {count!r}"
            )
            raise InvalidParams(message, field="parallel")
        degrees[axis] = int(count)
    made = Degrees(**degrees)
    if made.stages > 1 and made.sequence * made.tensor > 1:
        message = "parallel: stages go with cfg and data, not with ring, ulysses or tensor"
        raise InvalidParams(message, field="parallel")
    if made.data * made.ranks > MOST_RANKS:
        message = f"parallel asks for {made.data * made.ranks} ranks; the most are {MOST_RANKS}"
        raise InvalidParams(message, field="parallel")
    return made


def part_of(length: int, count: int, number: int) -> slice:
    """Where the part of that number lies, of a length in so many `shares`."""
    lengths = shares(length, count)
    first = sum(lengths[:number])
    return slice(first, first + lengths[number])


def shares(length: int, count: int) -> tuple[int, ...]:
    """A length in so many parts that differ by one at most, the longer first."""
    return tuple(length // count + (part < length % count) for part in range(count))
