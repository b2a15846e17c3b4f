"""`fluxline doctor`: what this machine can do, and whether a server would start on it as it is set.

It looks, and changes nothing but what a start would make: the data folder and its database. With
`--plan` it looks at no machine, and says what one that is described would do.
"""

import json
import os
import platform
import shutil
import socket
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import typer

from fluxline import __version__
from fluxline.cli.auto import settled
from fluxline.cli.plans import tell_plans
from fluxline.cli.room import check_shares, cores, crowds
from fluxline.errors import FluxlineError
from fluxline.profiles import GIB, Profile
from fluxline.settings import Settings, load_settings

State = Literal["ok", "note", "fault"]
EXTRAS = {"grpc": "grpc", "mcp": "mcp", "otel": "opentelemetry.sdk", "postgres": "psycopg"}
LITTLE_DISK_BYTES = GIB
HEADROOM = 1.15  # of the weights' size: what drawing takes beside them, at the least
SIGNS = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "fault": "[red]FAULT[/]"}
EXIT_FAULT = 2


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. note: somebody should know; fault: a server would not start."""

    what: str
    state: State
    said: str


def doctor(
    config: Annotated[Path | None, typer.Option(help="TOML file of options")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="say it to a program")] = False,
    plan: Annotated[
        str | None,
        typer.Option(
            metavar="MACHINE",
            help="how pictures would be drawn on cards: 4x24GB-pcie, 16x80GB-nvlink+2nodes",
        ),
    ] = None,
) -> None:
    """Say what this machine can do. Exit code 2: a server would not start as it is set."""
    if plan is not None:
        _plan(plan, as_json)
        return
    found = list(_findings(config))
    if as_json:
        print(json.dumps({"version": __version__, "findings": [asdict(one) for one in found]}))
    else:
        _show(found)
    if any(one.state == "fault" for one in found):
        raise typer.Exit(EXIT_FAULT)


def _plan(machine: str, as_json: bool) -> None:
    try:
        tell_plans(machine, as_json=as_json)
    except FluxlineError as exc:
        typer.secho(f"fluxline: {exc.message}", fg="red", err=True)
        raise typer.Exit(EXIT_FAULT) from exc


def _findings(config: Path | None) -> Iterator[Finding]:
    yield from _machine()
    yield from _extras()
    try:
        settings = load_settings({"config": config})
    except FluxlineError as exc:
        yield Finding("settings", "fault", exc.message)
        return
    yield Finding("settings", "ok", str(settings.config or "as they are by default"))
    yield from _stores(settings)
    yield from _ports(settings)
    try:
        settings, chosen = settled(settings)
        for profile in settings.served():
            check_shares(profile.model, profile.degrees)
        crowded = crowds(settings, None)
    except FluxlineError as exc:
        yield Finding("parallel", "fault", exc.message)
        return
    yield from (Finding("parallel", "ok", words) for words in chosen)
    yield from (Finding("parallel", "note", words) for words in crowded)
    for profile in settings.served():
        yield from _profile(profile)
        yield from _loras(profile, settings)


def _show(found: Iterable[Finding]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    for one in found:
        table.add_row(SIGNS[one.state], one.what, escape(one.said))
    Console().print(table)


def _machine() -> Iterator[Finding]:
    import psutil
    import torch

    from fluxline.engine.build import fast_dtype, pick_device

    build = f"Python {platform.python_version()}, torch {torch.__version__}"
    yield Finding("fluxline", "ok", f"{__version__} on {build}, {platform.machine()}")
    ram = psutil.virtual_memory()
    free = f"{ram.available / GIB:.1f} of {ram.total / GIB:.1f} GiB free"
    kernels = torch.backends.cpu.get_cpu_capability()
    yield Finding("cpu", "ok", f"{cores()} cores, {kernels}; memory {free}")
    best = pick_device("auto")
    for k in range(torch.cuda.device_count()):
        yield Finding(f"cuda:{k}", "ok", _card(k))
    if best.type == "cpu":
        yield Finding("cards", "note", "none: models run on the CPU")
    name = str(fast_dtype(best)).removeprefix("torch.")
    yield Finding("draws on", "ok", f"{best.type}, {name} unless a precision is asked for")


def _card(number: int) -> str:
    import torch

    card = torch.cuda.get_device_properties(number)
    free, total = torch.cuda.mem_get_info(number)
    able = [
        name
        for name, least in (("bf16", (8, 0)), ("fp8", (8, 9)), ("fp4", (10, 0)))
        if (card.major, card.minor) >= least
    ]
    memory = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
    return f"{card.name}, {memory}; multiplies {', '.join(able) or 'fp32'}"


def _extras() -> Iterator[Finding]:
    for extra, module in EXTRAS.items():
        try:
            is_there = find_spec(module) is not None
        except ModuleNotFoundError:
            is_there = False
        how = "installed" if is_there else f"not installed: pip install 'fluxline[{extra}]'"
        yield Finding(f"extra {extra}", "ok" if is_there else "note", how)


def _loras(profile: Profile, settings: Settings) -> Iterator[Finding]:
    """Whether the LoRAs that a profile wears by its settings are there."""
    from fluxline.server.house import open_loras
    from fluxline.service import lacks

    what = f"loras of {profile.name}"
    try:
        found = lacks(profile, open_loras(settings))
    except FluxlineError as exc:
        yield Finding(what, "fault", exc.message)
        return
    yield from (Finding(what, "note", lack) for lack in found)


def _stores(settings: Settings) -> Iterator[Finding]:
    from fluxline.jobs import Database

    try:
        folder = settings.data_folder(settings.port)
        free = shutil.disk_usage(folder).free
        state: State = "ok" if free > LITTLE_DISK_BYTES else "note"
        yield Finding("data", state, f"{folder}, {free / GIB:.1f} GiB free")
        Database(settings.database_url(settings.port)).close()
    except FluxlineError as exc:
        yield Finding("database", "fault", exc.message)
    else:
        kind = "SQLite in data" if not settings.database else "the one of its URL"
        yield Finding("database", "ok", f"{kind} answers")


def _ports(settings: Settings) -> Iterator[Finding]:
    for port in filter(None, (settings.port, *settings.listen, settings.grpc_port)):
        try:
            family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
            with socket.create_server((settings.host, port), family=family):
                yield Finding(f"port {port}", "ok", f"free on {settings.host}")
        except OSError as exc:
            said = f"cannot be had on {settings.host}: {os.strerror(exc.errno or 0)}"
            yield Finding(f"port {port}", "fault", said)


def _profile(profile: Profile) -> Iterator[Finding]:
    """Whether a profile's model is here, and whether there is memory for it."""
    from fluxline.engine.build import pick_device
    from fluxline.models.registry import entry_for
    from fluxline.weights.locate import locate
    from fluxline.weights.shelf import size_of

    what = f"profile {profile.name}"
    try:
        for member in range(profile.members):
            device = pick_device(profile.device_of(member))
        weights_bytes = size_of(locate(entry_for(profile.model).source))
    except FluxlineError as exc:
        yield Finding(what, "fault", exc.message)
        return
    told_bytes = profile.needs_bytes or round(HEADROOM * weights_bytes)
    needs = f"{told_bytes / GIB:.2f} GiB"
    needs += " as it says" if profile.needs_bytes else " as its files are, or less by precision"
    free_bytes = _free_bytes(device.type, device.index)
    fits = told_bytes <= free_bytes
    verdict = "fits" if fits else f"more than the {free_bytes / GIB:.1f} GiB that are free"
    said = f"{profile.model_name}, {profile.precision}, on {device}: {needs}: {verdict}"
    yield Finding(what, "ok" if fits else "note", said)


def _free_bytes(kind: str, number: int | None) -> int:
    import psutil
    import torch

    if kind == "cuda":
        return int(torch.cuda.mem_get_info(number or 0)[0])
    return int(psutil.virtual_memory().available)
