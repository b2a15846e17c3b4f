"""`fluxline models`: what is known, on this disk and loaded; fetch, check and remove models.

Nothing else of Fluxline reaches out to the hub.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from fluxline.errors import LoadError
from fluxline.variables import KEYS_VARIABLE

URL = "http://127.0.0.1:8080"
ASK_S = 2.0
GIB = 2**30

app = typer.Typer(help="List models; fetch, check and remove those of the hub.")
NameArgument = Annotated[str, typer.Argument(help="a name that is listed, or a hub id")]


@app.callback(invoke_without_command=True)
def models(
    context: typer.Context,
    url: Annotated[str | None, typer.Option(help=f"a running server; asked anyway: {URL}")] = None,
) -> None:
    """List the models known by name, which of them are on this disk, and what a server has loaded.

    A server with keys is asked with the first of API_KEYS.
    """
    if context.invoked_subcommand:
        return
    from rich.console import Console

    with _said():
        served = _served(url or URL, is_sure=url is not None)
        console = Console()
        console.print(_known())
        if served is not None:
            console.print(_loaded(url or URL, served))


@app.command()
def pull(
    name: NameArgument,
    revision: Annotated[
        str | None, typer.Option(help="branch, tag or commit; kept as the commit it is now")
    ] = None,
) -> None:
    """Fetch a model from the hub, or the rest of it, and hold it against the hub's checksums."""
    with _said():
        from fluxline.weights.locate import WANTED
        from fluxline.weights.shelf import pull

        manifest = pull(_repo(name), WANTED, revision)
    size = f"{manifest.size / GIB:.2f} GiB"
    print(f"{name}: {len(manifest.files)} files, {size}, at {manifest.revision[:12]}")


@app.command()
def verify(name: NameArgument) -> None:
    """Read a model that was pulled and hold it against its manifest. Exit code 1: it differs."""
    with _said():
        from fluxline.weights.shelf import verify

        wrong = verify(_repo(name))
    for line in wrong:
        print(f"fluxline: {name}: {line}", file=sys.stderr)
    if wrong:
        raise typer.Exit(1)
    print(f"{name}: every file is as it was pulled")


@app.command()
def remove(name: NameArgument) -> None:
    """Delete a model of the hub from this disk."""
    with _said():
        from fluxline.weights.shelf import remove

        freed = remove(_repo(name))
    print(f"{name}: {freed / GIB:.2f} GiB freed")


@contextmanager
def _said() -> Iterator[None]:
    """Say what went wrong, and end."""
    try:
        yield
    except LoadError as exc:
        print(f"fluxline: {exc.message}", file=sys.stderr)
        raise typer.Exit(2) from exc


def _repo(name: str) -> str:
    """The hub id of a model. Raises LoadError."""
    from fluxline.models.registry import MODELS
    from fluxline.weights.locate import HUB_ID

    entry = MODELS.get(name)
    if entry and entry.is_asset:
        raise LoadError(f"{name} ships with fluxline: there is nothing to fetch or to remove")
    repo = entry.source if entry else name
    if not HUB_ID.fullmatch(repo):
        raise LoadError(f"{name!r} is neither a name that `fluxline models` lists nor a hub id")
    return repo


def _known() -> Any:  # Any: a rich table
    from rich.table import Table

    from fluxline.models.registry import MODELS

    table = Table("name", "family", "from", "on this disk")
    for name, entry in MODELS.items():
        source = "shipped with fluxline" if entry.is_asset else entry.source
        source += f", {entry.beside}" if entry.beside else ""
        table.add_row(name, entry.family, source, _on_disk(entry.source))
    return table


def _on_disk(source: str) -> str:
    """How large a model is here, and at which revision it was pulled."""
    from fluxline.weights.shelf import held, manifest_of, size_of

    if Path(source).exists():
        return f"{size_of(Path(source)) / GIB:.2f} GiB"
    if (folder := held(source)) is None:
        return ""
    manifest = manifest_of(source)
    told = f"at {manifest.revision[:12]}" if manifest else "not by `fluxline models pull`"
    return f"{size_of(folder) / GIB:.2f} GiB, {told}"


def _loaded(url: str, served: list[dict[str, Any]]) -> Any:  # Any: JSON; a rich table
    from rich.table import Table

    table = Table("profile", "model", "state", "precision", "on", "memory", title=url)
    for one in served:
        memory = f"{one['memory_bytes'] / GIB:.2f} GiB" if one["memory_bytes"] else ""
        precision, device = one.get("precision", ""), one.get("device", "")
        is_there = one["state"] == "ready"
        table.add_row(
            one["profile"],
            one["model"],
            one["state"],
            precision if is_there else "",
            device if is_there else "",
            memory,
        )
    return table


def _served(url: str, *, is_sure: bool) -> list[dict[str, Any]] | None:
    """What a server lists; None if there is none and nobody said that there is.

    Raises LoadError.
    """
    import httpx2

    key = os.environ.get(KEYS_VARIABLE, "").partition(",")[0].strip()
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        answer = httpx2.get(f"{url.rstrip('/')}/v1/models", headers=headers, timeout=ASK_S)
        answer.raise_for_status()
        found: list[dict[str, Any]] = answer.json()["data"]
        if not all("profile" in one for one in found):
            raise KeyError("profile")
    except (httpx2.HTTPError, httpx2.InvalidURL, json.JSONDecodeError, KeyError, TypeError) as exc:
        if not is_sure:
            return None
        raise LoadError(f"no Fluxline answers at {url} ({type(exc).__name__})") from exc
    return found
