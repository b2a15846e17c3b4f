"""`fluxline doctor --plan`: how pictures would be drawn on a machine that need not be this one."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from fluxline.errors import ConfigError
from fluxline.parallel.machine import GIB, Machine, machine_of
from fluxline.parallel.network import DEV, SCHNELL, Network
from fluxline.parallel.planner import plan
from fluxline.parallel.way import Task

NETWORKS = (DEV, SCHNELL)
SIDES = (1024, 2048)  # px
PICTURES = (1, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """One line. Without a way: nothing fits, and `why` says by how much."""

    model: str
    steps: int
    side: int  # px
    pictures: int
    way: str = ""
    seconds: float | None = None
    alone_s: float | None = None
    card_bytes: float | None = None
    why: tuple[str, ...]


def tell_plans(machine: str, *, as_json: bool) -> None:
    """Say how some pictures would be drawn there, and why. Raises ConfigError."""
    there = machine_of(machine)
    planned = list(_planned(there))
    if as_json:
        lines = [{name: getattr(one, name) for name in Planned.__slots__} for one in planned]
        print(json.dumps({"machine": there.name, "plans": lines}))
    else:
        _show(there, planned)


def _planned(machine: Machine) -> Iterator[Planned]:
    for network, side, pictures in product(NETWORKS, SIDES, PICTURES):
        yield _case(network, machine, side, pictures)


def _case(network: Network, machine: Machine, side: int, pictures: int) -> Planned:
    task = Task(width=side, height=side, steps=network.steps, pictures=pictures)
    what = {"model": network.name, "steps": task.steps, "side": side, "pictures": pictures}
    try:
        made = plan(network, machine, task)
    except ConfigError as exc:
        return Planned(**what, why=(exc.message,))  # type: ignore[arg-type]  # fields by name
    return Planned(
        **what,  # type: ignore[arg-type]
        way=str(made.chosen.way),
        seconds=made.chosen.seconds,
        alone_s=made.alone.seconds,
        card_bytes=made.chosen.cost.memory.total,
        why=made.why,
    )


def _show(machine: Machine, planned: list[Planned]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("", "pictures", "", "drawn by", "all take", "one card", "GB a card"):
        table.add_column(name, justify="left" if name in ("", "drawn by") else "right")
    console = Console()
    if not console.is_terminal:  # whoever reads it can have it whole
        console = Console(width=120)
    console.print(escape(_preamble(machine)), highlight=False)
    for number, one in enumerate(planned, 1):
        size = f"{one.pictures} × {one.side}²"
        table.add_row(f"{number}", size, f"{one.model}, {one.steps} steps", *_cells(one))
    console.print(table)
    for number, one in enumerate(planned, 1):
        for k, why in enumerate(one.why):
            console.print(f"{number if not k else ' '}  {escape(why)}", highlight=False)


def _cells(one: Planned) -> tuple[str, str, str, str]:
    if one.seconds is None or one.alone_s is None or one.card_bytes is None:
        return "does not fit", "", "", ""
    seconds, alone = f"{one.seconds:.1f} s", f"{one.alone_s:.1f} s"
    return one.way, seconds, alone, f"{one.card_bytes / 1e9:.1f}"


def _preamble(machine: Machine) -> str:
    reached, memory = machine.flops / 1e12, machine.memory_bytes / GIB
    return (
        f"{machine.cards} cards of {memory:.0f} GB that reach {reached:.0f} TFLOPS each, bfloat16. "
        "Predicted, not measured: docs/parallel.md says how well.\n"
        "(one card: what it would take alone, had it the memory)\n"
    )
