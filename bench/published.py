"""Seconds that others have published of FLUX.1 on one and many cards, and what is predicted.

Figures of xDiT (docs/performance/flux.md and its plots), ParaAttention, piflux and diffusers; where
one was read off a plot it says so. Left out: xDiT's A100 plot at 2048 px, whose labels contradict
its axis; its H20 figures, which name neither size nor steps; hybrids whose degrees are not told.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fluxline.degrees import Degrees, degrees_of
from fluxline.parallel.cost import cost
from fluxline.parallel.machine import MOST_CARDS, NVLINK, PCIE, Link, Machine
from fluxline.parallel.network import DEV, SCHNELL, Network
from fluxline.parallel.way import Task, Way


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One published figure. way: of `Way`, or "best": the fastest exact one on so many cards."""

    source: str
    machine: str
    network: Network = DEV
    side: int = 1024  # px
    steps: int = 28
    cards: int = 1
    way: str = "none"
    seconds: float
    is_evaluation: bool = False  # and not a whole picture
    is_read: bool = False  # off a plot
    in_bands: bool = False  # the VAE: beyond 2048 px it fits into no such card otherwise

    @property
    def task(self) -> Task:
        """What was drawn."""
        return Task(width=self.side, height=self.side, steps=self.steps)


def _row(source: str, machine: str, times: dict[str, float], **more: object) -> list[Figure]:
    """Figures of one source, by "cards way"."""
    figures = []
    for said, seconds in times.items():
        cards, _, way = said.partition(" ")
        figure = Figure(
            source=source,
            machine=machine,
            cards=int(cards),
            way=way or "none",
            seconds=seconds,
            **more,  # type: ignore[arg-type]  # fields by name
        )
        figures.append(figure)
    return figures


XDIT, PARA = "xDiT", "ParaAttention"
FIGURES: Sequence[Figure] = (
    *_row(
        XDIT,
        "H100 eager",
        {"1": 6.71, "2 ulysses=2": 4.38, "2 ring=2": 5.31, "4 ulysses=4": 4.24}
        | {"4 ring=2,ulysses=2": 5.19, "4 ring=4": 5.11},
    ),
    *_row("piflux", "H100 eager", {"1": 6.37, "2 piflux": 3.74}),
    *_row(
        XDIT,
        "H100 compiled",
        {"1": 4.30, "2 ulysses=2": 2.68, "2 ring=2": 2.60, "4 ulysses=4": 1.63}
        | {"4 ring=2,ulysses=2": 1.80, "4 ring=4": 1.98},
    ),
    *_row(
        XDIT,
        "A100 eager",
        {"1": 12.77, "2 ulysses=2": 8.16, "4 ulysses=4": 5.55, "8 ulysses=8": 4.13},
    ),
    *_row(XDIT, "A100 eager", {"8 pipefusion": 5.4, "8 ring=8": 6.7}, is_read=True),
    *_row(PARA, "A100 eager", {"1": 13.84, "2 ring=2": 8.31, "4 ring=2,ulysses=2": 6.16}),
    *_row(PARA, "A100 compiled", {"1": 10.00, "2 ring=2": 5.78, "4 ring=2,ulysses=2": 3.56}),
    *_row(
        XDIT,
        "A100 eager",
        {"1": 2.18, "2 best": 1.48, "4 best": 1.12, "8 best": 0.93},
        network=SCHNELL,
        steps=4,
    ),
    *_row(
        XDIT,
        "A100 compiled",
        {"1": 1.88, "2 best": 1.25, "4 best": 0.96, "8 best": 0.82},
        network=SCHNELL,
        steps=4,
    ),
    *_row(
        XDIT,
        "L40",
        {"1": 18.36, "2 pipefusion": 11.03, "4 pipefusion": 7.05, "8 pipefusion": 5.53},
    ),
    *_row(XDIT, "2x8 L40", {"16 ring=16": 65.0}, is_read=True),
    *_row(
        XDIT,
        "L40",
        {"1": 105.7, "2 pipefusion": 58.15, "4 pipefusion": 30.1, "8 pipefusion": 18.68},
        side=2048,
    ),
    *_row(
        XDIT,
        "L40",
        {"1": 855.0, "2 pipefusion": 470.8, "4 pipefusion": 236.0, "8 pipefusion": 133.6},
        side=4096,
        in_bands=True,
    ),
    *_row(XDIT, "L40", {"1": 3.18, "4 best": 1.4}, network=SCHNELL, steps=4, is_read=True),
    *_row(
        XDIT,
        "L40",
        {"1": 14.71, "2 best": 8.62, "4 best": 4.46, "8 best": 3.67},
        network=SCHNELL,
        side=2048,
        steps=4,
    ),
    *_row(PARA, "L20", {"1": 26.36}),
    *_row(
        "diffusers",
        "L20",
        {"4 ulysses=4": 0.281, "4 ring=4": 0.351, "4 ring=2,ulysses=2": 0.324},
        is_evaluation=True,
    ),
)


FITTED: Mapping[str, float] = {
    "H100 eager flops": 620e12,
    "H100 eager block_s": 1.7e-3,
    "H100 compiled flops": 540e12,
    "H100 compiled block_s": 0.13e-3,
    "A100 eager flops": 190e12,
    "A100 eager block_s": 1.5e-3,
    "A100 compiled flops": 200e12,
    "A100 compiled block_s": 0.65e-3,
    "L40 flops": 130e12,
    "L40 block_s": 1.1e-3,
    "L20 flops": 92e12,
    "nvlink": 100e9,  # bytes a second
    "nodes": 1.5e9,  # of the L40
    "vae_share": 0.17,
    "hop_share": 0.12,
}
"""What of machines is fitted to the figures. L20 have the L40's block_s."""


def machine(name: str, constants: Mapping[str, float] = FITTED) -> Machine:
    """A machine of the figures."""
    card = name.removeprefix("2x8 ")
    links: tuple[Link, ...] = (Link(cards=MOST_CARDS, bytes_per_s=constants["nvlink"]),)
    if card in ("L40", "L20"):
        *inside, nodes = PCIE.links
        speed = constants["nodes"]
        links = (*inside, replace(nodes, bytes_per_s=speed, shared_bytes_per_s=speed))
    return replace(
        NVLINK,
        name=name,
        cards=16,
        flops=constants[f"{card} flops"],
        block_s=constants.get(f"{card} block_s", constants["L40 block_s"]),
        links=links,
        vae_share=constants["vae_share"],
        hop_share=constants["hop_share"],
    )


def predicted(figure: Figure, constants: Mapping[str, float] = FITTED) -> float:
    """What the model says of a figure, in seconds."""
    there = machine(figure.machine, constants)
    if figure.way == "best":
        return min(_seconds(figure, there, way) for way in exact_ways(figure.cards))
    return _seconds(figure, there, _way(figure))


def exact_ways(cards: int) -> list[Way]:
    """Ulysses, ring and both, of so many cards."""
    return [
        Way(degrees=Degrees(ulysses=u, ring=cards // u))
        for u in range(1, cards + 1)
        if cards % u == 0
    ]


def _way(figure: Figure) -> Way:
    match figure.way:
        case "piflux" | "pipefusion" | "distrifusion" as approximation:
            return Way(
                degrees=Degrees(ulysses=figure.cards),
                approximation=approximation,
                patches=figure.cards,  # as xDiT's are
            )
        case "none":
            return Way()
    return Way(degrees=degrees_of(figure.way))


def _seconds(figure: Figure, there: Machine, way: Way) -> float:
    way = replace(way, bands=figure.cards if figure.in_bands else 1)
    seconds = cost(figure.network, there, figure.task, way).seconds
    if figure.is_evaluation:
        return (seconds.total - seconds.encode - seconds.decode) / figure.steps
    return seconds.total


def misfit(constants: Mapping[str, float]) -> float:
    """Mean square of the logarithms of predicted to published."""
    errors = [math.log(predicted(one, constants) / one.seconds) for one in FIGURES]
    return sum(error**2 for error in errors) / len(errors)


def fitted(start: Mapping[str, float] = FITTED, turns: int = 6) -> Mapping[str, float]:
    """Constants that fit the figures best: one after another turned up or down, less each time."""
    best, least = dict(start), misfit(start)
    for turn in range(turns):
        is_better = True
        while is_better:
            is_better = False
            for name in best:
                for factor in (1 + 0.3 / 2**turn, 1 / (1 + 0.3 / 2**turn)):
                    other = {**best, name: best[name] * factor}
                    if (found := misfit(other)) < 0.9999 * least:
                        best, least, is_better = other, found, True
    return best
