"""`fluxline generate`: draw pictures here, without a server."""

import io
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fluxline.errors import FluxlineError, InvalidParams, LoadError, RequestError
from fluxline.request import (
    CancelledEvent,
    Failed,
    GenerationRequest,
    ImageFormat,
    ImageReady,
    ImageResult,
    SamplingParams,
)
from fluxline.request import Progress as Evaluated

if TYPE_CHECKING:
    from fluxline.engine import Engine

FAILED, CANNOT_START, INTERRUPTED = 1, 2, 130
FORMATS: dict[str, ImageFormat] = {
    ".png": "png",
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".webp": "webp",
}
PREVIEW_COLUMNS = 40


def generate(
    prompt: Annotated[str, typer.Argument(help="what to draw; - reads it from standard input")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="file to write; its ending is the format")
    ] = None,
    n: Annotated[int, typer.Option("-n", min=1, max=1024, help="pictures")] = 1,
    seed: Annotated[int | None, typer.Option(help="of the first picture; random if absent")] = None,
    size: Annotated[
        str | None, typer.Option(help="WIDTHxHEIGHT; the model's own if absent")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="the model's own if absent")] = None,
    guidance: Annotated[float | None, typer.Option(help="distilled, for dev-class models")] = None,
    sampler: Annotated[str, typer.Option()] = "euler",
    schedule: Annotated[str, typer.Option()] = "simple",
    cfg_scale: Annotated[float, typer.Option(help="true guidance; above 1 costs twice")] = 1.0,
    negative_prompt: Annotated[str, typer.Option(help="acts with --cfg-scale above 1")] = "",
    eta: Annotated[float, typer.Option(help="noise of ddim, 0 to 1")] = 0.0,
    model: Annotated[str, typer.Option(help="a name, a folder, a file or a hub id")] = "mini",
    device: Annotated[str, typer.Option(help="auto | cuda | mps | cpu")] = "auto",
    show: Annotated[bool, typer.Option(help="show the picture in the terminal")] = True,
) -> None:
    """Draw pictures of a prompt and write them to files."""
    console = Console(stderr=True)
    try:
        width, height = parse_size(size)
        params = SamplingParams(
            width=width,
            height=height,
            steps=steps,
            guidance=guidance,
            sampler=sampler,  # type: ignore[arg-type]  # a flag's text: the engine checks it
            schedule=schedule,  # type: ignore[arg-type]
            cfg_scale=cfg_scale,
            negative_prompt=negative_prompt,
            eta=eta,
        )
        request = _request(_text(prompt), params, n=n, seed=seed, output=output)
        with _engine(model, device, console) as engine:
            pictures = _draw(engine, request, console)
    except FluxlineError as exc:
        console.print(
            f"fluxline: {exc.message}", style="red", markup=False, highlight=False, soft_wrap=True
        )
        wrong = isinstance(exc, RequestError | LoadError)
        raise typer.Exit(CANNOT_START if wrong else FAILED) from exc
    except KeyboardInterrupt as exc:
        raise typer.Exit(INTERRUPTED) from exc
    for picture in pictures:
        _write(picture, output, request, console)
        if show:
            _show(picture)


def parse_size(size: str | None) -> tuple[int | None, int | None]:
    """Read "WIDTHxHEIGHT". Raises InvalidParams."""
    if size is None:
        return None, None
    if match := re.fullmatch(r"(\d{1,5})[xX×](\d{1,5})", size.strip()):
        return int(match[1]), int(match[2])
    raise InvalidParams(f"size must be like 512x512; got {size!r}", field="size")


def _text(prompt: str) -> str:
    text = sys.stdin.read().strip() if prompt == "-" else prompt
    if not text.strip():
        raise InvalidParams("prompt must not be empty", field="prompt")
    return text


def _request(
    prompt: str, params: SamplingParams, *, n: int, seed: int | None, output: Path | None
) -> GenerationRequest:
    from fluxline.engine.ticket import random_seed

    if output is not None and output.suffix.lower() not in FORMATS:
        message = f"output must end in {', '.join(FORMATS)}; got {output.name!r}"
        raise InvalidParams(message, field="output")
    if output is not None and not output.parent.is_dir():
        raise InvalidParams(f"no folder {output.parent}", field="output")
    return GenerationRequest(
        id="generate",
        prompt=prompt,
        seed=random_seed() if seed is None else seed,
        n=n,
        params=params,
        output_format=FORMATS[output.suffix.lower()] if output else "png",
    )


@contextmanager
def _engine(model: str, device: str, console: Console) -> Iterator["Engine"]:
    with console.status(f"opening {model}"):
        from fluxline.engine import Engine

        engine = Engine(model, device=device)
    with engine:
        yield engine


def _draw(engine: "Engine", request: GenerationRequest, console: Console) -> list[ImageResult]:
    """Draw with a progress bar. Raises EngineError if a picture fails."""
    from fluxline.errors import Cancelled, EngineError

    pictures: list[ImageResult] = []
    done: dict[int, int] = {}
    columns = (
        TextColumn("drawing"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("evaluations"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        for event in engine.submit(request):
            match event:
                case Evaluated():
                    done[event.index] = event.evaluation
                    total = event.total * request.n
                    bar.update(task, completed=sum(done.values()), total=total)
                case ImageReady():
                    pictures.append(event.image)
                case Failed():
                    raise EngineError(event.message)
                case CancelledEvent():
                    raise Cancelled("cancelled")
    return sorted(pictures, key=lambda picture: picture.index)


def _write(
    picture: ImageResult, output: Path | None, request: GenerationRequest, console: Console
) -> None:
    path = _path_of(picture, output, request)
    path.write_bytes(picture.data)
    seconds = sum(v for k, v in picture.timings_s.items() if k != "queue")
    for warning in picture.warnings:
        console.print(
            f"note: {warning}", style="yellow", markup=False, highlight=False, soft_wrap=True
        )
    line = f"{path}  seed {picture.seed}  {picture.width}x{picture.height}  {seconds:.2f} s"
    print(line)


def _say(console: Console, text: str, *, style: str) -> None:
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def _path_of(picture: ImageResult, output: Path | None, request: GenerationRequest) -> Path:
    if output is None:
        words = re.sub(r"[^a-z0-9]+", "-", request.prompt.lower()).strip("-")[:40] or "picture"
        return Path(f"{words}-{picture.seed}.png")
    if request.n == 1:
        return output
    return output.with_stem(f"{output.stem}-{picture.index}")


def _show(picture: ImageResult) -> None:
    import numpy as np
    from PIL import Image

    from fluxline import images

    if (protocol := images.detect(os.environ, sys.stdout.isatty())) is None:
        return
    pixels = np.asarray(Image.open(io.BytesIO(picture.data)).convert("RGB"))
    columns = min(PREVIEW_COLUMNS, shutil.get_terminal_size().columns)
    print(images.render(pixels, protocol, columns))
