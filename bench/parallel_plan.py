"""What the planner says of 1 to 64 cards, and how its cost model fits what others have published.

    python -m bench.parallel_plan [--fit]

Writes its tables into docs/parallel.md, and the plots beside it. --fit: first fits the constants of
the published machines anew (half a minute) and prints them, to be written into bench/published.py.
"""

import argparse
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bench import svg
from bench.marks import rewritten
from bench.published import FIGURES, FITTED, Figure, fitted, misfit, predicted
from fluxline.approximation import ApproximationName
from fluxline.degrees import Degrees
from fluxline.errors import ConfigError
from fluxline.parallel.machine import Machine, machine_of
from fluxline.parallel.network import DEV, SCHNELL, Network
from fluxline.parallel.planner import Plan, plan
from fluxline.parallel.sent import sent
from fluxline.parallel.way import Task, Way

DOCS = Path(__file__).parents[1] / "docs"
DOC = "parallel.md"
CARDS = (1, 2, 4, 8, 16, 32, 64)
SIDES = (1024, 2048, 4096)  # px
NETWORKS = (DEV, SCHNELL)
MACHINES = {
    "NVLink, one node": "{}x80GB-nvlink",
    "PCIe, one node": "{}x48GB-pcie",
    "NVLink, two nodes": "{}x80GB-nvlink+2nodes",
}
COLOURS = {
    "NVLink, one node": "#1b7837",
    "PCIe, one node": "#d95f02",
    "NVLink, two nodes": "#3b5fc0",
}
CARD_COLOURS = {
    "H100 eager": "#1b7837",
    "H100 compiled": "#7fbf5f",
    "A100 eager": "#3b5fc0",
    "A100 compiled": "#8fb0f0",
    "L40": "#d95f02",
    "2x8 L40": "#d95f02",
    "L20": "#a050a0",
}
WAYS: Mapping[str, tuple[str, ApproximationName | None, str]] = {
    "tensor": ("tensor", None, "#888888"),
    "ring, distrifusion": ("ring", None, "#3b5fc0"),
    "pairs in a ring": ("pairs", None, "#8fb0f0"),
    "ulysses": ("ulysses", None, "#1b7837"),
    "pipefusion": ("ulysses", "pipefusion", "#d95f02"),
    "piflux": ("ulysses", "piflux", "#a050a0"),
}


def main() -> None:
    """Write all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fit", action="store_true")
    if parser.parse_args().fit:
        best = fitted()
        for name, value in best.items():
            print(f"{name:24} {value:.2g}")
        print(f"root of the mean square error {100 * math.sqrt(misfit(best)):.1f} %")
    for name, text in documents().items():
        (DOCS / name).write_text(text, "utf-8")


def documents() -> dict[str, str]:
    """Every file that this writes, with what shall be in it."""
    text = (DOCS / DOC).read_text("utf-8")
    tables = {"plans": _plans(), "constants": _constants(), "published": _published()}
    for name, table in tables.items():
        text = rewritten(text, name, "bench.parallel_plan", table)
    return {
        DOC: text,
        "parallel-seconds.svg": _seconds_plot(),
        "parallel-published.svg": _published_plot(),
        "parallel-sent.svg": _sent_plot(),
    }


def _plans() -> str:
    """A table a kind of machine: the way of one picture and its seconds, by cards and size."""
    parts = []
    for kind, form in MACHINES.items():
        sizes = [f"{n.name.removeprefix('FLUX.1-')} {side}²" for n in NETWORKS for side in SIDES]
        lines = [
            f"**{kind}** (`{form.format('N')}`)\n",
            f"| cards | {' | '.join(sizes)} |",
            "|---" * (len(sizes) + 1) + "|",
        ]
        for cards in CARDS:
            machine = _machine(form, cards)
            if machine is not None:
                cells = [_cell(_planned(n, machine, s)) for n in NETWORKS for s in SIDES]
                lines.append(f"| {cards} | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _machine(form: str, cards: int) -> Machine | None:
    """None: so few cards do not lie on two nodes."""
    return None if cards == 1 and "nodes" in form else machine_of(form.format(cards))


def _planned(
    network: Network, machine: Machine, side: int, asked: ApproximationName | None = None
) -> Plan | None:
    task = Task(width=side, height=side, steps=network.steps)
    try:
        return plan(network, machine, task, asked=asked)
    except ConfigError:
        return None


def _cell(made: Plan | None) -> str:
    if made is None:
        return "too large"
    said = f"{made.chosen.way}: {_s(made.chosen.seconds)}"
    if made.suggested:
        said += f" (*{made.suggested.way}: {_s(made.suggested.seconds)}*)"
    return said


def _s(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 100 else f"{seconds:.3g} s"


def _constants() -> str:
    """What is fitted, and to how many figures."""
    lines = ["| card | products a second | a block | figures |", "|---|---|---|---|"]
    for card in dict.fromkeys(figure.machine.removeprefix("2x8 ") for figure in FIGURES):
        block_s = FITTED.get(f"{card} block_s")
        block = f"{1000 * block_s:g} ms" if block_s else "as an L40's"
        count = sum(figure.machine.endswith(card) for figure in FIGURES)
        lines.append(f"| {card} | {FITTED[f'{card} flops'] / 1e12:g} T | {block} | {count} |")
    lines.append(
        f"\nand for all of them: NVLink carries {FITTED['nvlink'] / 1e9:g} GB/s a card; a VAE "
        f"reaches {FITTED['vae_share']:g} of the speed of products; every further block of keys in "
        f"a ring takes {FITTED['hop_share']:g} of a block's time. By one figure alone, the ring on "
        f"16 cards: {FITTED['nodes'] / 1e9:g} GB/s between two nodes of L40."
    )
    return "\n".join(lines)


def _published() -> str:
    """Every figure beside what is predicted of it, and how well that does in all."""
    lines = [
        "| source | cards | drawn | by | published | predicted | error |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in FIGURES:
        seconds = predicted(one)
        is_read = "about " if one.is_read else ""
        unit = "s an evaluation" if one.is_evaluation else "s"
        drawn = f"{one.network.name.removeprefix('FLUX.1-')} {one.side}², {one.steps}"
        said = f"{is_read}{one.seconds:g} {unit} | {seconds:.3g} {unit}"
        error = f"{100 * (seconds / one.seconds - 1):+.0f} %"
        by = f"{one.way} on {one.cards}" if one.cards > 1 and "=" not in one.way else one.way
        lines.append(f"| {one.source} | {one.machine} | {drawn} | {by} | {said} | {error} |")
    in_order, pairs = _order()
    errors = sorted(abs(predicted(one) / one.seconds - 1) for one in FIGURES)
    lines.append(
        f"\nOf {len(errors)} figures half are met within {100 * errors[len(errors) // 2]:.0f} %, "
        f"nine of ten within {100 * errors[len(errors) * 9 // 10]:.0f} %; the worst is "
        f"{100 * errors[-1]:.0f} % off (root of the mean square "
        f"{100 * math.sqrt(misfit(FITTED)):.0f} %). Of {pairs} pairs of figures of the same "
        f"picture on the same cards, {in_order} are predicted in their order."
    )
    return "\n".join(lines)


def _order() -> tuple[int, int]:
    """Pairs of figures that are predicted in their order, and all of them."""
    in_order = pairs = 0
    for one, other in itertools.combinations(FIGURES, 2):
        if _picture(one) == _picture(other) and one.seconds != other.seconds:
            pairs += 1
            in_order += (predicted(one) < predicted(other)) == (one.seconds < other.seconds)
    return in_order, pairs


def _picture(figure: Figure) -> tuple[object, ...]:
    card = figure.machine.removeprefix("2x8 ")
    return (figure.source, card, figure.network.name, figure.side, figure.is_evaluation)


def _seconds_plot() -> str:
    """Seconds of one picture over cards, a panel a model and size."""
    parts: list[str] = []
    for row, network in enumerate(NETWORKS):
        for column, side in enumerate(SIDES):
            ticks = _decades(network, side)
            panel = svg.Panel(
                f"{network.name}, {side}², {network.steps} steps",
                (10 + 300 * column, 10 + 250 * row),
                (300, 240),
                x=CARDS,
                y=ticks,
                names=("cards", "s"),
            )
            for kind, form in MACHINES.items():
                panel.line(_seconds(network, form, side), COLOURS[kind])
                if network is DEV:
                    staged = _seconds(network, form, side, "pipefusion")
                    panel.line(staged, COLOURS[kind], dash="2 4")
            parts += panel.drawn
    entries = [(kind, colour, "") for kind, colour in COLOURS.items()]
    parts += svg.legend([*entries, ("pipefusion", "#555", "2 4")], 60, 528, 210)
    return svg.sheet(920, 545, parts)


def _decades(network: Network, side: int) -> Sequence[float]:
    """Ticks that hold every line of a panel."""
    values = [
        seconds
        for form in MACHINES.values()
        for asked in (None, "pipefusion" if network is DEV else None)
        for _, seconds in _seconds(network, form, side, asked)
    ]
    ticks = [k * 10.0**e for e in range(-2, 5) for k in (1, 2, 5)]
    first = max(tick for tick in ticks if tick <= min(values))
    last = min(tick for tick in ticks if tick >= max(values))
    return [tick for tick in ticks if first <= tick <= last]


def _seconds(
    network: Network, form: str, side: int, asked: ApproximationName | None = None
) -> list[tuple[float, float]]:
    points = []
    for cards in CARDS:
        machine = _machine(form, cards)
        made = machine and _planned(network, machine, side, asked)
        if made:
            points.append((float(cards), made.chosen.seconds))
    return points


def _published_plot() -> str:
    """Predicted over published, both in seconds."""
    ticks = [10.0**e for e in range(-1, 4)]
    panel = svg.Panel(
        "Predicted seconds over published; dashed: equal, and 25 % off",
        (10, 10),
        (520, 460),
        x=ticks,
        y=ticks,
        names=("published, s", "s"),
    )
    for factor in (1.0, 1.25, 0.75):
        low, high = max(ticks[0], ticks[0] / factor), min(ticks[-1], ticks[-1] / factor)
        panel.guide(((low, low * factor), (high, high * factor)))
    for card, colour in CARD_COLOURS.items():
        panel.dots(((f.seconds, predicted(f)) for f in FIGURES if f.machine == card), colour)
    names = [(name, colour, "") for name, colour in CARD_COLOURS.items() if name != "2x8 L40"]
    parts = [*panel.drawn, *svg.legend(names[:3], 60, 490, 160)]
    return svg.sheet(540, 525, [*parts, *svg.legend(names[3:], 60, 512, 160)])


def _sent_plot() -> str:
    """Megabytes that a rank sends in an evaluation, over ranks."""
    counts = CARDS[1:]
    panel = svg.Panel(
        "MB sent by a card in an evaluation, FLUX.1-dev, 1024²",
        (10, 10),
        (520, 380),
        x=counts,
        y=[10.0**e for e in range(-1, 5)],
        names=("cards", "MB"),
    )
    for axis, approximation, colour in WAYS.values():
        panel.line(_sent(axis, approximation, counts), colour)
    names = [(name, colour, "") for name, (_, _, colour) in WAYS.items()]
    parts = [*panel.drawn, *svg.legend(names[:3], 60, 412, 160)]
    return svg.sheet(540, 450, [*parts, *svg.legend(names[3:], 60, 434, 160)])


def _sent(
    axis: str, approximation: ApproximationName | None, counts: Sequence[int]
) -> Iterator[tuple[float, float]]:
    image = DEV.image_tokens(1024, 1024)
    for count in counts:
        pairs = {"ulysses": 2, "ring": count // 2}
        degrees = Degrees(**(pairs if axis == "pairs" else {axis: count}))
        if degrees.ulysses <= DEV.heads or approximation:
            way = Way(degrees=degrees, approximation=approximation)
            told = sent(DEV, way, image=image, is_synchronous=approximation is None)
            yield float(count), told.total / 1e6


if __name__ == "__main__":
    main()
