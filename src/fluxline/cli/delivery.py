"""What `fluxline generate` draws, delivered: a bar meanwhile, files, a look in the terminal."""

import io
import itertools
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fluxline.errors import InvalidParams
from fluxline.request import GenerationRequest, ImageReady, ImageResult, best, failure_of
from fluxline.request import Progress as Evaluated

if TYPE_CHECKING:  # a server starts without these
    from rich.console import Console

    from fluxline.engine import Engine

PREVIEW_COLUMNS = 40
Seen = Literal["never", "in a terminal", "always"]
"""Where a picture is shown beside its file's name."""


def deliver(
    engine: "Engine",
    request: GenerationRequest,
    output: Path | None,
    console: "Console",
    *,
    seen: Seen,
) -> ImageResult:
    """Draw, write and show the pictures of a request; return the last."""
    pictures = _drawn(engine, request, console)
    kept = pictures if request.top_k is None else best(pictures, request.top_k)
    for rank, picture in enumerate(kept, 1):
        _write(picture, _path_of(picture, output, request), rank, console)
        if seen != "never":
            _show(picture, seen)
    return picture


def check_folder(output: Path | None) -> None:
    """Say before anything is drawn that it could not be written."""
    folder = output.parent if output else Path()
    if not os.access(folder, os.W_OK):
        raise InvalidParams(f"cannot write into {folder.resolve()}", field="output")


def say(console: "Console", text: str, *, style: str) -> None:
    """Say a line beside what is drawn."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def _drawn(
    engine: "Engine", request: GenerationRequest, console: "Console"
) -> Iterator[ImageResult]:
    """Draw with a progress bar; yield the pictures as they come. Raises what one failed with."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

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


def _write(picture: ImageResult, path: Path, rank: int, console: "Console") -> None:
    """Write a file and say so; rank: its place among scored pictures."""
    try:
        path.write_bytes(picture.data)
    except OSError as exc:
        raise InvalidParams(f"cannot write {path}: {exc.strerror}", field="output") from exc
    seconds = sum(v for k, v in picture.timings_s.items() if k != "queue")
    for warning in picture.warnings:
        say(console, f"note: {warning}", style="yellow")
    score = ""
    if picture.score is not None:
        score = f"  score {picture.score:.3f} ({picture.scorer}), rank {rank}"
    size = f"{picture.width}x{picture.height}"
    print(f"{path}  seed {picture.seed}  {size}  {seconds:.2f} s{score}")


def _path_of(picture: ImageResult, output: Path | None, request: GenerationRequest) -> Path:
    if output is None:
        words = re.sub(r"[^a-z0-9]+", "-", request.prompt.lower()).strip("-")[:40] or "picture"
        return _free(Path(f"{words}-{picture.seed}.{request.output_format}"))
    if min(request.count, request.top_k or request.count) == 1:
        return output
    return output.with_stem(f"{output.stem}-{picture.index}")


def _free(path: Path) -> Path:
    """A name of our choosing never replaces a file."""
    candidates = (path.with_stem(f"{path.stem}-{k}") for k in itertools.count(2))
    return path if not path.exists() else next(c for c in candidates if not c.exists())


def _show(picture: ImageResult, seen: Seen) -> None:
    import numpy as np
    from PIL import Image

    from fluxline import images

    protocol = images.detect(os.environ, sys.stdout.isatty())
    if protocol is None and seen == "always":
        protocol = "blocks"
    if protocol is None:
        return
    pixels = np.asarray(Image.open(io.BytesIO(picture.data)).convert("RGB"))
    columns = min(PREVIEW_COLUMNS, shutil.get_terminal_size().columns)
    print(images.render(pixels, protocol, columns), flush=True)
