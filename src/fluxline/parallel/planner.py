"""Which way to draw on a machine, and why, by what each is predicted to cost.

Exact ways are chosen by themselves. An approximate one is suggested by its name where it would be
faster, and drawn in only by who asks for it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from fluxline.approximation import FEWEST_PER_RANK, ApproximationName
from fluxline.degrees import Degrees
from fluxline.errors import ConfigError
from fluxline.parallel.cost import Cost, cost
from fluxline.parallel.machine import Machine
from fluxline.parallel.network import Network
from fluxline.parallel.reasons import reasons
from fluxline.parallel.way import Task, Way

WORTH = 1.05  # more ranks must be so many times as fast
MUCH_FASTER = 1.1  # what is approximate is suggested where it is
LEAST_EVALUATIONS = 20  # with which stages pay
TENSOR = (2, 4, 8, 16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """A way, and what a task costs in it."""

    way: Way
    cost: Cost

    @property
    def seconds(self) -> float:
        """Until all pictures are there."""
        return self.cost.seconds.total


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How to draw. alone: what one card would take, whether or not it has the memory.

    suggested: what is approximate and much faster.
    """

    chosen: Option
    alone: Option
    suggested: Option | None
    why: tuple[str, ...]

    @property
    def degrees(self) -> Degrees:
        """Of what was chosen."""
        return self.chosen.way.degrees


def plan(
    network: Network,
    machine: Machine,
    task: Task,
    *,
    asked: ApproximationName | None = None,
    ranks: int | None = None,
) -> Plan:
    """Choose a way. asked: for this approximation. ranks: so many draw, no fewer and no more.

    Raises ConfigError where nothing fits.
    """
    alone = _option(network, machine, task, Way())
    suggested = None
    if asked is not None:
        options = _fitting(network, machine, task, _approximate(machine, task, asked))
    else:
        options = _exact_options(network, machine, task, ranks)
        staged = _fitting(network, machine, task, _approximate(machine, task, "pipefusion"))
        if options and staged and task.steps >= LEAST_EVALUATIONS:
            suggested = _better(_leanest(options), _leanest(staged))
    if not options:
        raise ConfigError(_too_little(network, machine, task, asked))
    chosen = _leanest(options)
    why = reasons(network, machine, task, chosen.way, suggested.way if suggested else None)
    return Plan(chosen=chosen, alone=alone, suggested=suggested, why=tuple(why))


def _option(network: Network, machine: Machine, task: Task, way: Way) -> Option:
    return Option(way=way, cost=cost(network, machine, task, way))


def _exact_options(
    network: Network, machine: Machine, task: Task, ranks: int | None
) -> list[Option]:
    """Those that fit; weights are divided only where they do not fit otherwise."""

    def fitting(ways: Iterator[Way]) -> list[Option]:
        wanted = (way for way in ways if ranks is None or way.ranks == ranks)
        return _fitting(network, machine, task, wanted)

    if options := fitting(_exact(network, machine, task, tensor=1)):
        return options
    staged = fitting(_staged(machine, task))
    for tensor in TENSOR:
        if options := fitting(_exact(network, machine, task, tensor)):
            return options + staged
    return staged


def _exact(network: Network, machine: Machine, task: Task, tensor: int) -> Iterator[Way]:
    for data, cfg in _rows(machine, task):
        for parts in _divisors(machine.cards, data, cfg * tensor):
            for ulysses in range(1, min(parts, network.heads // tensor) + 1):
                if parts % ulysses == 0:
                    degrees = Degrees(
                        data=data, cfg=cfg, ring=parts // ulysses, ulysses=ulysses, tensor=tensor
                    )
                    yield Way(degrees=degrees, bands=degrees.ranks)


def _staged(machine: Machine, task: Task) -> Iterator[Way]:
    for data, cfg in _rows(machine, task):
        for stages in _divisors(machine.cards, data, cfg):
            if stages > 1:
                degrees = Degrees(data=data, cfg=cfg, stages=stages)
                yield Way(degrees=degrees, bands=degrees.ranks)


def _approximate(machine: Machine, task: Task, name: ApproximationName) -> Iterator[Way]:
    for data, cfg in _rows(machine, task):
        for parts in _divisors(machine.cards, data, cfg):
            if parts == 1 or (name == "piflux" and task.steps < FEWEST_PER_RANK * parts):
                continue
            axis = "stages" if name == "pipefusion" else "ulysses"
            degrees = Degrees(data=data, cfg=cfg, **{axis: parts})
            yield Way(degrees=degrees, approximation=name, bands=degrees.ranks)


def _divisors(cards: int, data: int, others: int) -> Iterator[int]:
    """Parts of a sequence: so many that all cards can be replicas of that size."""
    for parts in range(1, cards // (data * others) + 1):
        if cards % (parts * others) == 0:
            yield parts


def _rows(machine: Machine, task: Task) -> Iterator[tuple[int, int]]:
    """Replicas, and groups for the two rows of true guidance."""
    for data in range(1, min(task.pictures, machine.cards) + 1):
        yield data, 1
        if task.is_steered and 2 * data <= machine.cards:
            yield data, 2


def _fitting(network: Network, machine: Machine, task: Task, ways: Iterable[Way]) -> list[Option]:
    options = (_option(network, machine, task, way) for way in ways)
    return [one for one in options if one.cost.memory.total <= machine.usable_bytes]


def _leanest(options: list[Option]) -> Option:
    """On the fewest ranks and with the smallest ring, of those nearly as fast as the fastest."""
    least = min(one.seconds for one in options)
    near = [one for one in options if one.seconds <= WORTH * least]
    return min(near, key=lambda one: (one.way.ranks, one.way.degrees.ring, one.seconds))


def _better(exact: Option, approximate: Option) -> Option | None:
    """What is approximate, where it is much faster."""
    return approximate if MUCH_FASTER * approximate.seconds <= exact.seconds else None


def _too_little(
    network: Network, machine: Machine, task: Task, asked: ApproximationName | None
) -> str:
    if asked is not None and machine.cards == 1:
        return f"{asked} needs two cards at the least; {machine.name} has one"
    if asked == "piflux" and task.steps < 2 * FEWEST_PER_RANK:
        least = 2 * FEWEST_PER_RANK
        return f"piflux needs {least} evaluations at the least, four a card; got {task.steps}"
    parts = machine.cards
    way = Way(
        degrees=Degrees(stages=parts) if asked is None else Degrees(ulysses=parts),
        approximation=asked,
        bands=parts,
    )
    least_bytes = cost(network, machine, task, way).memory.total
    return (
        f"{network.name} takes {least_bytes / 1e9:.1f} GB of a card however {parts} share it; "
        f"{machine.usable_bytes / 1e9:.1f} GB are there: hold it in fewer bits (--precision), "
        "or bring weights as they are needed (--memory stream)"
    )
