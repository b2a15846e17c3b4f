"""How far from exact the approximate ways to draw on many ranks are, on the embedded model.

    python -m bench.distances [--prompts 64] [--only pipefusion] [--write] [--sheet SHEET]

Pictures of 28 evaluations of euler in the native size, each of another prompt that was held out of
training, each with a seed of its own, drawn as a request that says `parallel` is drawn: by so many
processes over gloo. Each is held against the same picture drawn exactly; beside it stands the
control, the same prompt and seed drawn exactly by one device in as few evaluations as take the same
time. That time is ideal: transfers take none, and blocks can be cut as evenly as one likes.
--only: ways with that in their name. --write: the table into docs/parallel.md. --sheet: a row for
each way on most ranks and each of their controls, of each the pictures that are furthest from
exact, and before each the exact one.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
import torch.distributed as dist
from PIL import Image

from bench.gloo import on_ranks
from bench.likeness import Picture, gmsd, psnr, ssim
from bench.marks import rewritten
from fluxline.approximation import approximation_of
from fluxline.degrees import Degrees
from fluxline.engine.build import open_model
from fluxline.engine.intake import Intake
from fluxline.engine.ranks import divide
from fluxline.engine.runner import Runner
from fluxline.engine.scheduler import Budget, Scheduler
from fluxline.engine.ticket import new_request
from fluxline.parallel.crew import Crew
from fluxline.parallel.mesh import Mesh
from fluxline.request import GenerationRequest
from training import questions

DOC = Path(__file__).parents[1] / "docs" / "parallel.md"
STEPS = 28
RANKS = (2, 4)
WAYS = (
    "piflux",
    "piflux,every=4",
    "distrifusion",
    "pipefusion",
    "pipefusion,sync=3",
)
SHOWN, SHOWN_PX = 4, 96
MEASURES: Mapping[str, Callable[[Picture, Picture], float]] = {
    "PSNR": psnr,
    "SSIM": ssim,
    "GMSD": gmsd,
}
Measured = Mapping[str, Sequence[float]]
"""What each measure says of every picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One way on so many ranks, beside its control."""

    way: str
    ranks: int
    found: Measured
    control: Measured

    @property
    def row(self) -> str:
        """As the table has it."""
        evaluations = evaluations_of(self.way, self.ranks)
        cells = (
            f"`{settled(self.way, self.ranks)}`",
            f"{self.ranks}",
            f"{evaluations:.1f}",
            *told(self.found),
            f"{control_of(self.way, self.ranks)}",
            *told(self.control),
        )
        return f"| {' | '.join(cells)} |"


HEAD = (
    "| way | ranks | time | PSNR: mean (5 %, least) | SSIM | GMSD "
    "| control | PSNR: mean (5 %, least) | SSIM | GMSD |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def main() -> None:
    """Draw, print, write."""
    options = _options()
    torch.set_num_threads(1)
    prompts = held_out(options.prompts)
    ways = [way for way in WAYS if options.only in way]
    controls = sorted({control_of(way, ranks) for way in ways for ranks in RANKS})
    exact = _drawn([_asked(prompts, STEPS)])[0]
    shorter = {steps: _drawn([_asked(prompts, steps)])[0] for steps in controls}
    rows: list[tuple[str, Sequence[Picture]]] = []
    lines = []
    for ranks in RANKS:
        asked = [_asked(prompts, STEPS, way) for way in ways]
        drawn = on_ranks(ranks, _drawn, asked)[0]
        for way, pictures in zip(ways, drawn, strict=True):
            line = Line(
                way=way,
                ranks=ranks,
                found=measured(pictures, exact),
                control=measured(shorter[control_of(way, ranks)], exact),
            )
            lines.append(line)
            print(line.row, flush=True)
            if ranks == RANKS[-1]:
                rows.append((way, pictures))
    if options.write:
        _write(lines, len(prompts))
    if options.sheet:
        most = sorted({control_of(way, RANKS[-1]) for way in ways})
        rows += [(f"{steps} evaluations", shorter[steps]) for steps in most]
        _sheet([pictures for _, pictures in rows], exact).save(options.sheet, quality=85)
        print(f"rows of {options.sheet}: {', '.join(name for name, _ in rows)}")


def held_out(count: int) -> list[str]:
    """Prompts of every kind that the embedded model was never trained with."""
    found = [prompt for kind, prompt, _ in questions.read("cpu") if "held out" in kind]
    return found[:: len(found) // count][:count]


def settled(way: str, ranks: int) -> str:
    """A way as it is drawn, its exact evaluations counted."""
    return approximation_of(way).settled(STEPS, ranks).spelt


def evaluations_of(way: str, ranks: int) -> float:
    """The time of a picture in evaluations of one device, transfers hidden and blocks even."""
    return approximation_of(way).settled(STEPS, ranks).time(STEPS, ranks)


def control_of(way: str, ranks: int) -> int:
    """The evaluations of one device that take as long, rounded in its favour."""
    return math.ceil(evaluations_of(way, ranks))


def measured(pictures: Sequence[Picture], exact: Sequence[Picture]) -> Measured:
    """What each measure says of pictures beside the exact ones."""
    return {
        name: [measure(one, other) for one, other in zip(pictures, exact, strict=True)]
        for name, measure in MEASURES.items()
    }


def told(found: Measured) -> tuple[str, ...]:
    """As cells of the table: of each measure its mean, of PSNR how bad it gets too."""
    levels = sorted(found["PSNR"])
    worst = levels[len(levels) // 20]
    return (
        f"{statistics.mean(levels):.1f} ({worst:.1f}, {levels[0]:.1f})",
        f"{statistics.mean(found['SSIM']):.4f}",
        f"{statistics.mean(found['GMSD']):.4f}",
    )


def _asked(prompts: Sequence[str], steps: int, way: str | None = None) -> list[GenerationRequest]:
    params = {"steps": steps, "sampler": "euler", "parallel": way}
    return [new_request(prompt, seed=seed, params=params) for seed, prompt in enumerate(prompts)]


def _drawn(asked: Sequence[Sequence[GenerationRequest]]) -> list[list[Picture]]:
    """Pictures of many lists of requests, by as many ranks as there are."""
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    model, crew = open_model("mini", "cpu", "fp32"), Crew(Mesh.join(Degrees(ulysses=ranks)))
    divide(model, crew)
    intake = Intake(model.spec, lambda loras: (), is_technical=False)
    runner = Runner(model, _no_scorer, crew=crew)
    try:
        return [_pictures(requests, intake, runner) for requests in asked]
    finally:
        runner.close()


def _pictures(
    requests: Sequence[GenerationRequest], intake: Intake, runner: Runner
) -> list[Picture]:
    scheduler = Scheduler(Budget(batch_tokens=2048, resident_tokens=2**20))
    jobs = [intake.jobs_of(request)[0] for request in requests]
    for job in jobs:
        scheduler.add(job, now=0.0)
    pictures: dict[str, Picture] = {}
    while not scheduler.is_idle:
        plan = scheduler.next(now=0.0)
        outcome = runner.execute(plan)
        for fault in outcome.failed.values():
            raise fault
        scheduler.settle(plan, outcome)
        pictures.update(outcome.pictures)
    return [pictures[job.id] for job in jobs]


def _no_scorer() -> None:
    raise AssertionError("nobody asks for the best of several")


def _write(lines: Sequence[Line], prompts: int) -> None:
    table = "\n".join((HEAD, *(line.row for line in lines)))
    when = f"{prompts} prompts, {STEPS} evaluations, {time.strftime('%Y-%m-%d')}, torch"
    text = f"{table}\n\n{when} {torch.__version__}, float32."
    written = rewritten(DOC.read_text("utf-8"), "distances", "bench.distances", text)
    DOC.write_text(written, "utf-8")


def _sheet(rows: Sequence[Sequence[Picture]], exact: Sequence[Picture]) -> Image.Image:
    """A row a way: the pictures that are furthest from exact, worst first, the exact one before."""
    sheet = Image.new("RGB", (2 * SHOWN * SHOWN_PX, len(rows) * SHOWN_PX))
    for row, pictures in enumerate(rows):
        pairs = sorted(zip(exact, pictures, strict=True), key=lambda pair: psnr(*pair))
        for column, picture in enumerate(chain.from_iterable(pairs[:SHOWN])):
            small = Image.fromarray(picture).resize((SHOWN_PX, SHOWN_PX), Image.Resampling.LANCZOS)
            sheet.paste(small, (column * SHOWN_PX, row * SHOWN_PX))
    return sheet


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--only", default="")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--sheet", type=Path, help="picture to write")
    options = parser.parse_args()
    if options.write and options.only:
        parser.error("--write is of all ways")
    return options


if __name__ == "__main__":
    main()
