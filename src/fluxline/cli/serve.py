"""`fluxline serve`: its flags are the fields of `Settings`, made from them and nowhere repeated."""

import gc
import inspect
import os
import sys
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from fluxline.cli.auto import settled
from fluxline.cli.nodes import follow_server, on_ranks
from fluxline.cli.ranks import let_first_speak
from fluxline.cli.room import check_shares, crowds
from fluxline.errors import ConfigError
from fluxline.settings import Settings, load_settings
from fluxline.worker.place import place_of

NOT_FLAGS = {"aliases", "profiles", "presets", "api_keys"}
"""Tables; secrets, which a list of processes would show."""
LISTS = {"devices", "listen"}  # as text, with commas between
SHORT = {"devices": "-g"}  # as the dual service's start scripts have it


def serve(**flags: Any) -> None:  # Any: the values of the flags made below
    """Serve pictures over HTTP until told to stop. Started by torchrun, on all its ranks."""
    gc.disable()  # to look through what is being imported, again and again, takes an eighth of it
    from fluxline.server.serve import run

    if flags.pop("cpu"):
        flags["device"] = "cpu"
    place = None
    try:
        place = place_of(os.environ)
        settings = load_settings(flags)
        settings, words = on_ranks(settings, place) if place else settled(settings)
        for profile in settings.served():
            check_shares(profile.model, profile.degrees)
        if place is None or place.is_first:
            words += crowds(settings, place)
    except ConfigError as exc:
        if place is None or place.is_first:
            print(f"fluxline: {exc.message}", file=sys.stderr)
        else:
            let_first_speak()
        raise typer.Exit(2) from exc
    if place and not place.is_first:
        raise typer.Exit(follow_server(settings))
    for line in words:
        print(line, file=sys.stderr)
    run(settings)


def _flag(name: str) -> inspect.Parameter:
    field = Settings.model_fields[name]
    kind: Any = field.annotation
    if get_origin(kind) is Literal:
        choices = " | ".join(get_args(kind))
        return _parameter(name, str, f"{field.description}: {choices}", field.default)
    if name in LISTS:
        return _parameter(name, str, field.description or "", None)
    return _parameter(name, kind, field.description or "", field.default)


def _parameter(name: str, kind: Any, text: str, default: object) -> inspect.Parameter:
    shown = None if default is None else str(default)
    flag = f"--{name.replace('_', '-')}"
    spelt = (flag, SHORT[name]) if name in SHORT else ()
    option = typer.Option(*spelt, help=text, show_default=shown or False)
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, option],
    )


_CPU = inspect.Parameter(
    "cpu",
    inspect.Parameter.KEYWORD_ONLY,
    default=False,
    annotation=Annotated[bool, typer.Option("--cpu", help="the same as --device cpu")],
)
serve.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # what typer reads
    [*(_flag(name) for name in Settings.model_fields if name not in NOT_FLAGS), _CPU]
)
