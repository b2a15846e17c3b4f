"""`fluxline keys`: make, list and revoke the keys of a server's database."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fluxline.errors import FluxlineError
from fluxline.settings import load_settings

if TYPE_CHECKING:
    from fluxline.jobs import Key, KeyRing

app = typer.Typer(no_args_is_help=True, help="Make, list and revoke API keys.")

DataOption = Annotated[Path | None, typer.Option(help="the server's data folder")]
DatabaseOption = Annotated[str | None, typer.Option(help="the server's database URL")]
PortOption = Annotated[int | None, typer.Option(help="the server's port, if it has no --data")]

MEGA = 1e6


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="whose key it is, for you to read")],
    admin: Annotated[bool, typer.Option(help="may see and touch everybody's jobs")] = False,
    priority: Annotated[int, typer.Option(help="its requests go before those of lower keys")] = 0,
    most_open: Annotated[int | None, typer.Option(min=1, help="requests at a time")] = None,
    rate: Annotated[
        float | None, typer.Option(min=0.001, help="megapixels x evaluations a minute")
    ] = None,
    days: Annotated[float | None, typer.Option(min=0, help="how long it is good")] = None,
    data: DataOption = None,
    database: DatabaseOption = None,
    port: PortOption = None,
) -> None:
    """Make a key and print it, once: only its hash is kept."""
    from fluxline.jobs import Scope

    with _ring(data, database, port) as ring:
        scopes = (Scope.GENERATE, Scope.ADMIN) if admin else (Scope.GENERATE,)
        _, secret = ring.create(
            name,
            scopes=scopes,
            priority=priority,
            most_open=most_open,
            rate=None if rate is None else rate * MEGA,
            days=days,
        )
    print(secret)


@app.command("list")
def list_(
    data: DataOption = None, database: DatabaseOption = None, port: PortOption = None
) -> None:
    """List the keys, without their secrets."""
    with _ring(data, database, port) as ring:
        for key in ring.all():
            print("  ".join(_line(key)))


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="as listed")],
    data: DataOption = None,
    database: DatabaseOption = None,
    port: PortOption = None,
) -> None:
    """Make a key good for nothing, at once."""
    with _ring(data, database, port) as ring:
        if not ring.revoke(key_id):
            print(
                f"fluxline: there is no key {key_id}; give the id that is listed", file=sys.stderr
            )
            raise typer.Exit(2)


@contextmanager
def _ring(data: Path | None, database: str | None, port: int | None) -> "Iterator[KeyRing]":
    """Open the keys of a server that is found as the server itself finds them."""
    from fluxline.jobs import Database, KeyRing

    try:
        settings = load_settings({"data": data, "database": database, "port": port})
        opened = Database(settings.database_url(settings.port))
        try:
            yield KeyRing(opened)
        finally:
            opened.close()
    except FluxlineError as exc:
        print(f"fluxline: {exc.message}", file=sys.stderr)
        raise typer.Exit(2) from exc


def _line(key: "Key") -> list[str]:
    now = datetime.now(UTC).timestamp()
    state = "good"
    if key.revoked_at is not None:
        state = "revoked"
    elif key.expires_at is not None and key.expires_at <= now:
        state = "expired"
    made = datetime.fromtimestamp(key.created_at, UTC).date().isoformat()
    return [key.id, made, f"{state:7}", " ".join(sorted(key.scopes)), key.name]
