"""The command line. It opens either wing, and only the one a command needs.

Exit codes: 0 done · 1 a picture failed · 2 cannot start, or a wrong option · 130 interrupted.
"""

import sys
from typing import Annotated

import typer

from fluxline import __version__
from fluxline.cli import keys, models
from fluxline.cli.doctor import doctor
from fluxline.cli.generate import generate
from fluxline.cli.quantize import quantize
from fluxline.cli.serve import serve

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, help="say the version and end")
    ] = False,
) -> None:
    """The fast, lightweight, unified engine for FLUX image generation."""
    if version:
        print(f"fluxline {__version__}")
        raise typer.Exit


app.command()(serve)
app.command()(generate)
app.command()(doctor)
app.command()(quantize)
app.add_typer(models.app, name="models")
app.add_typer(keys.app, name="keys")


def main() -> None:
    """`fluxline`."""
    app()


def serve_main() -> None:
    """`fluxline-server`: the same as `fluxline serve`."""
    app(["serve", *sys.argv[1:]], prog_name="fluxline-server")
