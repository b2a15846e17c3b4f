"""`fluxline generate`: draw pictures here, without a server."""

import inspect
import os
import signal
import sys
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from fluxline.cli.delivery import deliver, say
from fluxline.cli.options import Options
from fluxline.cli.order import Order, of_options, of_recipe
from fluxline.cli.ranks import follow_first, gathered, let_first_speak, ways_asked
from fluxline.errors import FluxlineError, LoadError, RequestError
from fluxline.request import GenerationRequest
from fluxline.worker.place import Place, place_of

if TYPE_CHECKING:  # a server starts without these
    from rich.console import Console

    from fluxline.cli.replay import Original
    from fluxline.engine import Engine

FAILED, CANNOT_START, INTERRUPTED = 1, 2, 130


def generate(context: typer.Context, **said: Any) -> None:  # Any: the values of `Options`
    """Draw pictures of a prompt and write them to files. Started by torchrun, on all its ranks."""
    from rich.console import Console

    console = Console(stderr=True)
    place = None
    before = signal.signal(signal.SIGINT, lambda *_: _end(console))
    try:
        place = place_of(os.environ)
        _take_part(Options(**said), _typed(context), place, console)
    except FluxlineError as exc:
        if place is None or place.is_first:
            say(console, f"fluxline: {exc.message}", style="red")
        else:
            let_first_speak()
        wrong = isinstance(exc, RequestError | LoadError)
        raise typer.Exit(CANNOT_START if wrong else FAILED) from exc
    except KeyboardInterrupt as exc:
        raise typer.Exit(INTERRUPTED) from exc
    finally:
        signal.signal(signal.SIGINT, before)


generate.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # what typer reads
    [
        inspect.signature(generate).parameters["context"],
        *inspect.signature(Options).parameters.values(),
    ]
)


def _end(console: "Console") -> NoReturn:
    """End at once, as a Ctrl-C asks: a forward may take seconds, and a thread that is in one when
    the interpreter goes takes the process down with a fault."""
    with suppress(RuntimeError):  # in the middle of a line
        console.show_cursor(True)
        sys.stdout.flush()
    os._exit(INTERRUPTED)


def _typed(context: typer.Context) -> set[str]:
    """The options that were typed."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source and source.name == "COMMANDLINE"}


def _take_part(
    options: Options, typed: AbstractSet[str], place: Place | None, console: "Console"
) -> None:
    """Draw what is asked, or follow the first rank, which draws it."""
    divided, approximation = ways_asked(options.parallel or (), place)
    if place and not place.is_first:
        follow_first(options.device, place)
        return
    order = of_options(options, divided, approximation)
    if options.again is not None:
        order = of_recipe(options.again, order, typed, place, console)
    with _engine(order, options.scorer, place, console) as engine:
        if order.original is None:
            deliver(engine, order.request, options.output, console, seen=options.seen)
        else:
            _draw_again(engine, order.request, order.original, options, console)


@contextmanager
def _engine(
    order: Order, scorer: str | None, place: Place | None, console: "Console"
) -> Iterator["Engine"]:
    """Open an engine for an order, on all ranks; one that is to be like another is drawn alone."""
    opening, params, like = order.opening, order.request.params, order.like
    with ExitStack() as stack:
        with console.status(f"opening {opening.model}"):
            together = stack.enter_context(
                gathered(opening, params, device=order.device, place=place, console=console)
            )
            from fluxline.engine import Budget, Engine, LoraSources, keep_memory

            keep_memory()
            engine = Engine(
                opening.model,
                device=together.device,
                precision=opening.precision,
                memory=opening.memory,
                scorer=scorer,
                budget=None if like is None else Budget(batch_tokens=1, resident_tokens=1),
                threads=None if like is None else like.threads,
                loras=LoraSources(folder=_lora_folder() if params.loras else None),
                crew=together.crew,
                tell=together.tell,
                on_lost=together.on_lost,
            )
        for note in engine.models[0].notes:
            say(console, f"note: {note}", style="yellow")
        with engine:
            yield engine


def _lora_folder() -> Path:
    """Where a server started here would have them. Raises ConfigError."""
    from fluxline.settings import load_settings

    return load_settings().lora_folder()


def _draw_again(
    engine: "Engine",
    request: GenerationRequest,
    original: "Original",
    options: Options,
    console: "Console",
) -> None:
    """Draw a picture from its own file; say before what may differ, and after what does."""
    from fluxline.cli import replay
    from fluxline.engine.finish import SOFTWARE

    request = replace(request, model=engine.models[0].name)
    now, name = engine.receipts(request)[0], original.path.name
    if doubts := replay.doubts(original, request, now, SOFTWARE):
        lines = "; ".join(doubts)
        say(console, f"note: the bytes may not be those of {name}: {lines}", style="yellow")
    picture = deliver(engine, request, options.output, console, seen=options.seen)
    is_same_kind = request.output_format == original.format
    if is_same_kind and not replay.overrides(original.request, request):
        say(console, replay.verdict(original, picture.data), style="default")
