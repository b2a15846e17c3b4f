"""`fluxline quantize`: write a model in fewer bits, once for many starts."""

from pathlib import Path
from typing import Annotated

import typer

from fluxline.errors import LoadError

CANNOT_START = 2
KINDS = "int8 | int8-dynamic | fp8 | nf4 | nf4-double | hqq4 | fp4"


def quantize(
    model: Annotated[str, typer.Argument(help="a name, a folder, a file or a hub id")],
    precision: Annotated[str, typer.Option(help=KINDS)],
    out: Annotated[Path, typer.Option("--out", "-o", help="folder to write; a new one")],
    device: Annotated[str, typer.Option(help="where to compute: auto | cuda | cpu")] = "auto",
) -> None:
    """Write a model with its layers in fewer bits into a folder that opens as any model does."""
    from rich.console import Console
    from rich.progress import Progress, TaskID

    console = Console(stderr=True)
    try:
        from fluxline.engine.quantize import quantize as write

        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            tasks: dict[str, TaskID] = {}

            def tell(part: str, done: int, total: int) -> None:
                if part not in tasks:
                    tasks[part] = bar.add_task(part, total=total)
                bar.update(tasks[part], completed=done)

            count = write(model, precision, out, device=device, tell=tell)
    except LoadError as exc:
        console.print(f"fluxline: {exc.message}", style="red", markup=False, highlight=False)
        raise typer.Exit(CANNOT_START) from exc
    print(f"{out}  {precision}  {count / 2**20:.0f} MiB")
