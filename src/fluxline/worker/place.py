"""Which rank this process is, where torchrun or its like has started several."""

from collections.abc import Mapping
from dataclasses import dataclass

from fluxline.errors import ConfigError

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A rank among all, and among those of its machine."""

    rank: int
    size: int
    local_rank: int
    local_size: int

    @classmethod
    def first_of(cls, size: int) -> "Place":
        """The first of so many on this machine, which starts the others."""
        return cls(rank=0, size=size, local_rank=0, local_size=size)

    @property
    def is_first(self) -> bool:
        """Whether it leads the others."""
        return self.rank == 0


def place_of(environ: Mapping[str, str]) -> Place | None:
    """Read torchrun's variables; None: it has started no others. Raises ConfigError.

    Who starts them otherwise may leave the local ones out: then all are taken to be on machines of
    their own.
    """
    if "RANK" not in environ or environ.get("WORLD_SIZE", "1") == "1":
        return None
    said = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"} | dict(environ)
    for name in VARIABLES:
        if not (said[name].isascii() and said[name].isdecimal()):
            raise ConfigError(f"{name} must be a number, as torchrun sets it; got {said[name]!r}")
    rank, size, local_rank, local_size = (int(said[name]) for name in VARIABLES)
    if rank >= size or local_rank >= local_size:
        raise ConfigError(
            f"ranks are numbered from 0: {rank} of {size}, {local_rank} of {local_size} here"
        )
    return Place(rank=rank, size=size, local_rank=local_rank, local_size=local_size)


def beside(device: str, rank: int) -> str:
    """The device of a rank of this machine, where that of the first is given: cards in a row."""
    kind, _, first = device.partition(":")
    return device if kind in ("cpu", "mps") else f"{kind}:{int(first or 0) + rank}"
