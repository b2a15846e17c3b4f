"""`fluxline generate`: draw pictures here, without a server."""

import io
import itertools
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fluxline.errors import (
    FluxlineError,
    InvalidParams,
    LoadError,
    RequestError,
)
from fluxline.request import (
    GenerationRequest,
    ImageFormat,
    ImageReady,
    ImageResult,
    SamplingParams,
    best,
    failure_of,
    random_seed,
)
from fluxline.request import Progress as Evaluated

if TYPE_CHECKING:
    from fluxline.engine import Engine
    from fluxline.images import Recipe

FAILED, CANNOT_START, INTERRUPTED = 1, 2, 130
FORMATS: dict[str, ImageFormat] = {
    ".png": "png",
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".webp": "webp",
    ".avif": "avif",
}
PREVIEW_COLUMNS = 40
BESIDE_RECIPE = {"again", "output", "model", "device", "show"}


def generate(
    context: typer.Context,
    prompt: Annotated[
        str | None, typer.Argument(help="what to draw; - reads it from standard input")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="file to write; its ending is the format")
    ] = None,
    n: Annotated[int, typer.Option("-n", min=1, max=1024, help="pictures")] = 1,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="keep so many of them, the best by a scorer")
    ] = None,
    scorer: Annotated[
        str | None, typer.Option(help="a CLIP folder or hub id; the model's own if absent")
    ] = None,
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
    again: Annotated[
        Path | None, typer.Option("--from", help="a picture of ours, to make again from its recipe")
    ] = None,
    show: Annotated[bool, typer.Option(help="show the picture in the terminal")] = True,
) -> None:
    """Draw pictures of a prompt and write them to files."""
    console = Console(stderr=True)
    try:
        output_format = _format_of(output)
        if scorer is not None and top_k is None:
            raise InvalidParams("scorer acts only with --top-k: give both", field="scorer")
        if again is not None:
            given = _refuse_beside_recipe(context)
            request = replace(_recipe_of(again).to_request("generate"), output_format=output_format)
            model = model if "model" in given else _registered(request.model)
        else:
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
            request = GenerationRequest(
                id="generate",
                prompt=_text(prompt),
                seed=random_seed() if seed is None else seed,
                n=n,
                top_k=top_k,
                params=params,
                output_format=output_format,
            )
        _check_folder(output)
        with _engine(model, device, scorer, console) as engine:
            pictures = _drawn(engine, request, console)
            for picture in pictures if top_k is None else best(pictures, top_k):
                _write(picture, _path_of(picture, output, request), console)
                if show:
                    _show(picture)
    except FluxlineError as exc:
        _say(console, f"fluxline: {exc.message}", style="red")
        wrong = isinstance(exc, RequestError | LoadError)
        raise typer.Exit(CANNOT_START if wrong else FAILED) from exc
    except KeyboardInterrupt as exc:
        raise typer.Exit(INTERRUPTED) from exc


def parse_size(size: str | None) -> tuple[int | None, int | None]:
    """Read "WIDTHxHEIGHT". Raises InvalidParams."""
    if size is None:
        return None, None
    if match := re.fullmatch(r"(\d{1,5})[xX×](\d{1,5})", size.strip()):
        return int(match[1]), int(match[2])
    raise InvalidParams(f"size must be like 512x512; got {size!r}", field="size")


def _text(prompt: str | None) -> str:
    if prompt is None:
        raise InvalidParams("give a prompt, or --from and a picture of ours", field="prompt")
    text = sys.stdin.read().strip() if prompt == "-" else prompt
    if not text.strip():
        raise InvalidParams("prompt must not be empty", field="prompt")
    return text


def _format_of(output: Path | None) -> ImageFormat:
    if output is None:
        return "png"
    if output.suffix.lower() not in FORMATS:
        message = f"output must end in {', '.join(FORMATS)}; got {output.name!r}"
        raise InvalidParams(message, field="output")
    if not output.parent.is_dir():
        raise InvalidParams(f"no folder {output.parent}", field="output")
    return FORMATS[output.suffix.lower()]


def _refuse_beside_recipe(context: typer.Context) -> set[str]:
    """Refuse options that a recipe decides; return what was given."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = {name for name, source in sources.items() if source and source.name == "COMMANDLINE"}
    if wrong := sorted(given - BESIDE_RECIPE):
        message = f"{wrong[0].replace('_', '-')} cannot be given with --from: the recipe says it"
        raise InvalidParams(message, field=wrong[0])
    return given


def _registered(model: str | None) -> str:
    """The model of a recipe, if its name says where it lies."""
    from fluxline.models.registry import MODELS

    if model in MODELS:
        return model
    message = f"the recipe was drawn by {model!r}, which is not in the registry: give its --model"
    raise InvalidParams(message, field="model")


def _recipe_of(path: Path) -> "Recipe":
    from fluxline import images

    try:
        data = path.read_bytes()
    except OSError as exc:
        raise InvalidParams(f"cannot read {path}: {exc.strerror}", field="from") from exc
    recipe = images.read_recipe(data)
    if recipe is None:
        raise InvalidParams(f"{path} carries no recipe of ours", field="from")
    return recipe


@contextmanager
def _engine(model: str, device: str, scorer: str | None, console: Console) -> Iterator["Engine"]:
    with console.status(f"opening {model}"):
        from fluxline.engine import Engine, keep_memory

        keep_memory()
        engine = Engine(model, device=device, scorer=scorer)
    with engine:
        yield engine


def _drawn(engine: "Engine", request: GenerationRequest, console: Console) -> Iterator[ImageResult]:
    """Draw with a progress bar; yield the pictures as they come. Raises what one failed with."""
    done: dict[int, int] = {}
    columns = (
        TextColumn("drawing"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("evaluations"),
        TimeRemainingColumn(),
    )
    is_seen = console.is_terminal
    with Progress(
        *columns, console=console, transient=True, redirect_stdout=False, disable=not is_seen
    ) as bar:
        task = bar.add_task("", total=None)
        for event in engine.submit(request):
            match event:
                case Evaluated():
                    done[event.index] = event.evaluation
                    total = event.total * request.count
                    bar.update(task, completed=sum(done.values()), total=total)
                case ImageReady():
                    bar.stop()  # it would be in the way of what is printed now
                    yield event.image
                    bar.start()
                case _ if (error := failure_of(event)) is not None:
                    raise error


def _write(picture: ImageResult, path: Path, console: Console) -> None:
    try:
        path.write_bytes(picture.data)
    except OSError as exc:
        raise InvalidParams(f"cannot write {path}: {exc.strerror}", field="output") from exc
    seconds = sum(v for k, v in picture.timings_s.items() if k != "queue")
    for warning in picture.warnings:
        _say(console, f"note: {warning}", style="yellow")
    score = "" if picture.score is None else f"  score {picture.score:.3f}"
    size = f"{picture.width}x{picture.height}"
    print(f"{path}  seed {picture.seed}  {size}  {seconds:.2f} s{score}")


def _say(console: Console, text: str, *, style: str) -> None:
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def _path_of(picture: ImageResult, output: Path | None, request: GenerationRequest) -> Path:
    if output is None:
        words = re.sub(r"[^a-z0-9]+", "-", request.prompt.lower()).strip("-")[:40] or "picture"
        return _free(Path(f"{words}-{picture.seed}.png"))
    if min(request.count, request.top_k or request.count) == 1:
        return output
    return output.with_stem(f"{output.stem}-{picture.index}")


def _free(path: Path) -> Path:
    """A name of our choosing never replaces a file."""
    candidates = (path.with_stem(f"{path.stem}-{k}") for k in itertools.count(2))
    return path if not path.exists() else next(c for c in candidates if not c.exists())


def _check_folder(output: Path | None) -> None:
    """Say before anything is drawn that it could not be written."""
    folder = output.parent if output else Path()
    if not os.access(folder, os.W_OK):
        raise InvalidParams(f"cannot write into {folder.resolve()}", field="output")


def _show(picture: ImageResult) -> None:
    import numpy as np
    from PIL import Image

    from fluxline import images

    if (protocol := images.detect(os.environ, sys.stdout.isatty())) is None:
        return
    pixels = np.asarray(Image.open(io.BytesIO(picture.data)).convert("RGB"))
    columns = min(PREVIEW_COLUMNS, shutil.get_terminal_size().columns)
    print(images.render(pixels, protocol, columns))
