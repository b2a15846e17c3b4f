"""What `--parallel auto` means: degrees for a machine and a model, and why in one line."""

from dataclasses import dataclass, replace

from fluxline.degrees import Degrees
from fluxline.errors import ConfigError
from fluxline.parallel.machine import Machine, machine_of
from fluxline.parallel.network import NETWORKS, Network
from fluxline.parallel.planner import plan
from fluxline.parallel.way import Task

WEIGHT_BYTES = {
    **{"fp32": 4.0, "int8": 1.0, "int8-dynamic": 1.0, "fp8": 1.0},
    **dict.fromkeys(("nf4", "nf4-double", "hqq4", "fp4"), 0.55),  # with their scales
}
SIDE = 1024  # px, of a picture that nobody has asked for yet


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Degrees, and the reason that matters most."""

    degrees: Degrees
    why: str

    def __str__(self) -> str:
        return f"parallel auto: {self.degrees.spelt or 'one rank'}: {self.why}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is to be drawn and how its weights are held, as far as it is known. Sizes in px."""

    model: str
    precision: str = "auto"
    memory: str = "auto"
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    is_steered: bool = False

    @property
    def network(self) -> Network | None:
        """The model's, its weights as they are held; None: nobody has said what it costs."""
        network = NETWORKS.get(self.model)
        if network is None or self.precision not in WEIGHT_BYTES:
            return network
        return replace(network, weight_bytes=WEIGHT_BYTES[self.precision])


def for_picture(wish: Wish, machine: str, ranks: int | None = None) -> Choice:
    """What draws one picture first. machine: as `machine_of` reads it; empty: without cards.

    ranks: so many are there, and all draw. Raises ConfigError where they cannot.
    """
    return _for_picture(wish, machine_of(machine) if machine else None, ranks)


def for_server(wish: Wish, machine: str, replicas: int | None = None) -> Choice:
    """What draws one picture first, as often as there are cards, or in so many replicas."""
    if wish.memory == "spread" or not machine:
        return for_picture(wish, machine)
    there = machine_of(machine)
    of_each = max(1, there.cards // (replicas or 1))
    each = _for_picture(wish, replace(there, cards=of_each))
    data = replicas or there.cards // each.degrees.ranks
    if data == 1:
        return each
    why = f"{each.why}; {data} replicas of {each.degrees.ranks}"
    return Choice(degrees=replace(each.degrees, data=data), why=why)


def _for_picture(wish: Wish, machine: Machine | None, ranks: int | None = None) -> Choice:
    if why := _alone(wish, machine):
        if ranks is None:
            return Choice(degrees=Degrees(), why=why)
        return Choice(degrees=Degrees(ulysses=ranks), why=f"all divide the tokens; {why}")
    network = wish.network
    assert network is not None
    assert machine is not None
    task = Task(
        width=wish.width or wish.height or SIDE,
        height=wish.height or wish.width or SIDE,
        steps=wish.steps or network.steps,
        is_steered=wish.is_steered,
    )
    try:
        made = plan(network, machine, task, ranks=ranks)
    except ConfigError as exc:
        if ranks is not None:
            raise
        return Choice(degrees=Degrees(), why=exc.message)
    why = made.why[0] if made.why else "no other way is faster"
    return Choice(degrees=made.degrees, why=f"{why} ({machine.name}, predicted)")


def _alone(wish: Wish, machine: Machine | None) -> str:
    """Why nothing is planned; empty: it is."""
    if machine is None:
        return "no cards are here"
    if machine.cards == 1:
        return "one card is here"
    if wish.memory not in ("auto", "resident"):
        return f"memory {wish.memory} is of one rank alone"
    if wish.network is None:
        return f"what {wish.model} costs is not known"
    return ""
