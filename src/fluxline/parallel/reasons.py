"""Why a way of drawing was chosen, in words with numbers: each held against what else there was."""

from collections.abc import Iterator
from dataclasses import replace

from fluxline.degrees import Degrees
from fluxline.parallel.cost import cost
from fluxline.parallel.machine import Machine
from fluxline.parallel.network import Network
from fluxline.parallel.way import Task, Way


def reasons(
    network: Network, machine: Machine, task: Task, way: Way, suggested: Way | None
) -> list[str]:
    """Sentences, what matters most first."""
    said = _Reasons(network, machine, task, way)
    return [
        *said.memory(),
        *said.approximation(),
        *said.replicas(),
        *said.guidance(),
        *said.tokens(),
        *said.idle_cards(),
        *(said.suggestion(suggested) if suggested else ()),
    ]


class _Reasons:
    def __init__(self, network: Network, machine: Machine, task: Task, way: Way) -> None:
        self._network, self._machine, self._task, self._way = network, machine, task, way
        self._degrees = way.degrees
        self._seconds = self._takes(way)

    def _takes(self, way: Way) -> float:
        return cost(self._network, self._machine, self._task, way).seconds.total

    def _bytes(self, way: Way) -> float:
        return cost(self._network, self._machine, self._task, way).memory.total

    def _exactly(self, degrees: Degrees) -> Way:
        return Way(degrees=degrees, bands=degrees.ranks)

    def memory(self) -> Iterator[str]:
        """Where it decides."""
        undivided = self._exactly(replace(self._degrees, tensor=1))
        needed, there = self._bytes(undivided), self._machine.usable_bytes
        held = self._bytes(self._way)
        if self._degrees.stages > 1 and self._way.approximation is None:
            alone = self._bytes(self._exactly(replace(self._degrees, stages=1)))
            yield (
                f"whole weights take {_gb(alone)} of a card that has {_gb(there)}: "
                f"stages={self._degrees.stages}, some of the blocks each, take {_gb(held)}; one "
                "picture goes from one to the next, so that several are drawn sooner, not one"
            )
        elif self._degrees.tensor > 1:
            yield (
                f"whole weights take {_gb(needed)} of a card that has {_gb(there)}: cut by "
                f"tensor={self._degrees.tensor}, {_gb(held)}; held in fewer bits (--precision) it "
                "may fit whole and be faster"
            )

    def approximation(self) -> Iterator[str]:
        """What it saves."""
        if self._way.approximation is None:
            return
        exact = self._exactly(self._degrees)
        if self._bytes(exact) > self._machine.usable_bytes:
            return
        yield (
            f"{self._way} takes {_s(self._seconds)}, exactly ({exact}) "
            f"{_s(self._takes(exact))}: it is not exact, and pictures say so"
        )

    def replicas(self) -> Iterator[str]:
        """Where there are several pictures."""
        data = self._degrees.data
        if data == 1:
            return
        together = self._degrees.ranks * data
        one_by_one = self._exactly(
            Degrees(ulysses=together)
            if together <= self._network.heads
            else Degrees(ulysses=self._degrees.ranks, ring=data)
        )
        yield (
            f"{self._task.pictures} pictures: data={data}, for replicas exchange nothing: "
            f"{_s(self._seconds)} for all, one after another on {together} cards "
            f"{_s(self._takes(one_by_one))}"
        )

    def guidance(self) -> Iterator[str]:
        """Where both rows of true guidance are drawn at once."""
        if self._degrees.cfg == 1:
            return
        image = self._network.image_tokens(self._task.width, self._task.height)
        size = image * self._network.channels * self._network.value_bytes
        yield f"true guidance: cfg=2, a row each: {_mb(size)} between them an evaluation"

    def tokens(self) -> Iterator[str]:
        """Why ulysses, ring or both."""
        degrees = self._degrees
        if degrees.sequence == 1 or self._way.approximation is not None:
            return
        sent = cost(self._network, self._machine, self._task, self._way).sent
        heads = self._network.heads // degrees.tensor
        divides = "divide" if heads % degrees.ulysses == 0 else "do not divide evenly"
        if degrees.ulysses > 1:
            yield (
                f"ulysses={degrees.ulysses}: {heads} heads {divides} by it, {_mb(sent.ulysses)} "
                "sent by a card an evaluation"
            )
        if degrees.ring > 1:
            yield f"ring={degrees.ring}: keys go around while cards compute, {_mb(sent.ring)}"
        for other in (
            replace(degrees, ulysses=degrees.sequence, ring=1),
            replace(degrees, ulysses=1, ring=degrees.sequence),
        ):
            if other != degrees and other.ulysses <= heads:
                yield f"{other.spelt} would take {_s(self._takes(self._exactly(other)))}"

    def idle_cards(self) -> Iterator[str]:
        """Where more would hardly help."""
        idle = self._machine.cards - self._way.ranks
        if not idle:
            return
        yield (
            f"{idle} of {self._machine.cards} cards are left for other pictures: "
            "no way with more of them is 5 % faster"
        )

    def suggestion(self, way: Way) -> Iterator[str]:
        """What is approximate and faster."""
        yield (
            f"{way} would take {_s(self._takes(way))} and {_gb(self._bytes(way))} of a card: "
            f"approximate, so only who asks for it gets it, of --parallel {way.degrees.spelt}"
        )


def _s(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds < 100 else f"{seconds:.0f} s"


def _mb(size: float) -> str:
    return f"{size / 1e6:.3g} MB" if size < 1e9 else f"{size / 1e9:.3g} GB"


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
