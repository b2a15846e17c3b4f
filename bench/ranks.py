"""Two ranks of one thread against one rank of one thread: the exact ways, and what they send.

    python -m bench.ranks [--rounds 5] [--sides 256,512,1024] [--write]

One evaluation of a random FLUX.1 of the true architecture, 1024 wide, through the verbs that the
engine calls: from noise and context to the velocity on both ranks. Ways are taken in turn, round by
round; what is said of each are medians, and of its ratio the median of the rounds'. Rank k has core
k. `data` is two pictures that have nothing to do with each other, and so what two cores can give
here at best. Beside the ratio of seconds stands that of the processor's: what ranks work, without
what they wait for each other and for other programs. What they send is counted, and held against
`parallel.sent`: another number ends it. --write: into docs/parallel.md and docs/measurements.md.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, product
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bench.gloo import on_ranks
from bench.marks import rewritten
from fluxline.degrees import degrees_of
from fluxline.engine.build import open_model
from fluxline.engine.ranks import divide
from fluxline.models.flux1.transformer import FluxConfig
from fluxline.parallel.crew import Crew
from fluxline.parallel.mesh import Mesh
from fluxline.parallel.network import SCHNELL, Network
from fluxline.parallel.sent import sent
from fluxline.parallel.way import Way
from tests.random_flux import save_random_flux

DOCS = Path(__file__).parents[1] / "docs"
WAYS = {"ulysses=2": 1, "ring=2": 1, "tensor=2": 1, "cfg=2": 2, "stages=2": 2, "data=2": 2}
"""With rows of a forward; two of `data` are a picture each."""
SIGMA = 0.7
CONFIG = FluxConfig(
    in_channels=64,
    out_channels=64,
    depth_double=1,  # to two single blocks, as in the real ones
    depth_single=2,
    head_dim=128,
    heads=8,
    text_dim=64,
    pooled_dim=64,
    guidance=False,
    axes=(16, 56, 56),
)
NETWORK = replace(
    SCHNELL,
    double=CONFIG.depth_double,
    single=CONFIG.depth_single,
    hidden=CONFIG.hidden,
    heads=CONFIG.heads,
    value_bytes=4,
)


@dataclass(frozen=True, slots=True)
class Line:
    """Of one way at one size."""

    way: str
    image: int  # tokens
    one_s: float  # by one rank
    two_s: float
    ratio: float
    worked: float  # the ratio of processor time
    sent: int  # bytes an evaluation, by both ranks

    @property
    def cells(self) -> tuple[str, ...]:
        """As a table has them."""
        seconds = f"{self.one_s:.2f} s", f"{self.two_s:.2f} s"
        ratios = f"**{self.ratio:.2f}**", f"{self.worked:.2f}"
        return f"`{self.way}`", *seconds, *ratios, f"{self.sent / 1e6:.2f} MB"


def main() -> None:
    """Measure, print, write."""
    options = _options()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        save_random_flux(Path(folder), CONFIG, text_length=NETWORK.text_tokens)
        told = on_ranks(2, _measured, folder, options.sides, options.rounds)
    lines = [
        line(way, NETWORK.image_tokens(side, side), [one[side, way] for one in told])
        for side in options.sides
        for way in WAYS
    ]
    when = f"{time.strftime('%Y-%m-%d')}, {_machine()}, {options.rounds} rounds"
    text = f"{table(lines)}\n\n{when}; the machine's load before was {load:.1f}."
    print(text)
    if options.write:
        for name in ("parallel.md", "measurements.md"):
            document = (DOCS / name).read_text("utf-8")
            written = rewritten(document, "ranks", "bench.ranks", text)
            (DOCS / name).write_text(written, "utf-8")


def line(way: str, image: int, told: Sequence["Told"]) -> Line:
    """What both ranks tell of a way. Raises ValueError if they sent what no formula says."""
    for rank, one in enumerate(told):
        formula = predicted(NETWORK, way, image, rank)
        if one.sent != formula:
            raise ValueError(f"{way}: rank {rank} sent {one.sent} bytes; by formula {formula}")
    rounds = [
        (told[0].one[number], _slower(one.two[number] for one in told))  # the other only waits
        for number in range(len(told[0].one))
    ]
    return Line(
        way,
        image,
        one_s=statistics.median(one.wall_s for one, _ in rounds),
        two_s=statistics.median(two.wall_s for _, two in rounds),
        ratio=statistics.median(one.wall_s / two.wall_s for one, two in rounds),
        worked=statistics.median(one.worked_s / two.worked_s for one, two in rounds),
        sent=sum(one.sent for one in told),
    )


def _slower(both: Iterable["Took"]) -> "Took":
    walls, works = zip(*((one.wall_s, one.worked_s) for one in both), strict=True)
    return Took(max(walls), max(works))


def predicted(network: Network, way: str, image: int, rank: int) -> int:
    """Bytes that a rank sends in an evaluation, by formula."""
    degrees = degrees_of(way)
    within = rank % degrees.ranks  # replicas are all alike
    by = Way(degrees=degrees)
    rows = WAYS[way]
    return sent(network, by, image=image, rows=rows, rank=within, is_synchronous=True).total


def table(lines: Sequence[Line]) -> str:
    """A row for each size and way."""
    names = "image tokens", "way", "one rank", "two ranks", "ratio", "of processor time", "sent"
    head = f"| {' | '.join(names)} |\n{'|---' * len(names)}|"
    return "\n".join((head, *(f"| {one.image} | {' | '.join(one.cells)} |" for one in lines)))


@dataclass(frozen=True, slots=True)
class Took:
    """How long an evaluation took, and how long this rank's core worked for it."""

    wall_s: float
    worked_s: float


@dataclass(slots=True)
class Told:
    """What a rank tells of a way at a size: every round, by one rank and by two, and bytes sent."""

    one: list[Took]
    two: list[Took]
    sent: int = 0


def _measured(folder: str, sides: Sequence[int], rounds: int) -> Mapping[tuple[int, str], Told]:
    """Of every size and way, on this rank. Each first round is a warm-up."""
    whole, is_first = _Drawer(folder, ""), dist.get_rank() == 0
    drawers = {way: _Drawer(folder, way, whole) for way in WAYS}
    told = {(side, way): Told([], []) for side in sides for way in WAYS}
    for side, number in product(sides, range(rounds + 1)):
        for rows, ways in groupby(WAYS, key=lambda way: WAYS[way]):
            one = whole.took(side, rows if is_first else 0)
            for way in ways:
                two = drawers[way].took(side, 1 if way == "data=2" else rows)
                if number:
                    told[side, way].one.append(one)
                    told[side, way].two.append(two)
                    told[side, way].sent = drawers[way].sent
    return told


class _Drawer:
    """A model as ranks draw with it in one way; whole: another, whose weights it may have."""

    def __init__(self, folder: str, way: str, whole: "_Drawer | None" = None) -> None:
        degrees = degrees_of("" if way == "data=2" else way)
        self._crew = Crew(Mesh.join(degrees))
        is_own = whole is None or degrees.tensor * degrees.stages > 1
        self._model: Any = open_model(folder, "cpu", "fp32", crew=self._crew) if is_own else None
        if whole is not None and not is_own:
            self._model = whole._model
        plain = self._model.forward
        divide(self._model, self._crew)
        self._forward, self._model.forward = self._model.forward, plain
        self.sent = 0

    def took(self, side: int, rows: int) -> Took:
        """One evaluation of so many rows of a square picture, begun by all ranks at once."""
        model, crew = self._model, self._crew
        (conditioning,) = model.encode(["a fox"])
        context = model.context(
            conditioning, width=side, height=side, guidance=None, sigmas=[SIGMA]
        )
        noise = model.noise(torch.Generator().manual_seed(0), side, side)
        x = noise.expand(rows, -1, -1)
        before = crew.traffic.bytes
        dist.barrier()
        began, worked = time.perf_counter(), time.process_time()
        if rows:
            self._velocity(x, context)
        took = Took(time.perf_counter() - began, time.process_time() - worked)
        self.sent = crew.traffic.bytes - before
        return took

    def _velocity(self, x: Tensor, context: Any) -> Tensor:
        """As the engine's runner has it."""
        model = self._model
        model.forward = self._forward

        def run(own: slice) -> Tensor:
            rows = x[own]
            velocity: Tensor = model.evaluate(rows, [SIGMA] * len(rows), [context] * len(rows))
            return velocity

        return self._crew.evaluate(len(x), run)


def _machine() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        names = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
    capability = torch.backends.cpu.get_cpu_capability()
    cores = len(os.sched_getaffinity(0))
    name = names[0] if names else platform.machine()
    return f"{cores} cores of an {name} ({capability}), torch {torch.__version__}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sides", type=_numbers, default=[256, 512, 1024], help="px: 256,512")
    parser.add_argument("--write", action="store_true")
    return parser.parse_args()


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


if __name__ == "__main__":
    main()
