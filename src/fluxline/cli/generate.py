"""`fluxline generate`: draw pictures here, without a server."""

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, cast, get_args

import typer
from msgspec import structs

from fluxline import wire
from fluxline.ability import STRENGTH
from fluxline.cli import given
from fluxline.cli.delivery import Seen, check_folder, deliver, say
from fluxline.cli.ranks import Together, follow_first, gathered, ranks_of_recipe, ways_asked
from fluxline.errors import (
    ConfigError,
    FluxlineError,
    InvalidParams,
    LoadError,
    RequestError,
)
from fluxline.request import (
    GenerationRequest,
    ImageFormat,
    LoraRef,
    MemoryName,
    PrecisionName,
    SamplingParams,
    random_seed,
)
from fluxline.worker.place import place_of

if TYPE_CHECKING:  # a server starts without these
    from rich.console import Console

    from fluxline.cli.replay import Original
    from fluxline.engine import Engine
    from fluxline.images import Receipt

FAILED, CANNOT_START, INTERRUPTED = 1, 2, 130
FORMATS: dict[str, ImageFormat] = {
    ".png": "png",
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".webp": "webp",
    ".avif": "avif",
}


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
        int | None, typer.Option(min=1, help="keep so many of them, the best by --scorer")
    ] = None,
    scorer: Annotated[
        str | None,
        typer.Option(help="a CLIP folder or hub id, or technical; the model's own if absent"),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="of the first picture; random if absent")] = None,
    size: Annotated[
        str | None, typer.Option(help="WIDTHxHEIGHT; the model's own if absent")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="the model's own if absent")] = None,
    guidance: Annotated[float | None, typer.Option(help="distilled, for dev-class models")] = None,
    sampler: Annotated[str, typer.Option()] = "euler",
    schedule: Annotated[str, typer.Option()] = "simple",
    cfg_scale: Annotated[
        float | None,
        typer.Option(help="true guidance, above 1 twice the work; the model's own if absent"),
    ] = None,
    negative_prompt: Annotated[str, typer.Option(help="acts with --cfg-scale above 1")] = "",
    eta: Annotated[float, typer.Option(help="noise of ddim, 0 to 1")] = 0.0,
    image: Annotated[
        Path | None,
        typer.Option("--image", help="a picture to draw on; the size follows its shape"),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            help=f"how much of --image is drawn anew, to 1; {STRENGTH} if absent, with --mask 1"
        ),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(help="a picture that says what of --image is: transparent, or else white"),
    ] = None,
    expand: Annotated[
        str | None,
        typer.Option(help="LEFT,TOP,RIGHT,BOTTOM: px to draw beside --image"),
    ] = None,
    reference: Annotated[
        list[Path] | None,
        typer.Option(help="a picture to look at, for models that do; may be given again"),
    ] = None,
    loras: Annotated[
        list[str] | None,
        typer.Option("--lora", help="NAME[:STRENGTH], a file, a folder or a hub id; repeatable"),
    ] = None,
    model: Annotated[str, typer.Option(help="a name, a folder, a file or a hub id")] = "mini",
    device: Annotated[str, typer.Option(help="auto | cuda | mps | cpu")] = "auto",
    precision: Annotated[
        str, typer.Option(help=f"how weights are held: {' | '.join(get_args(PrecisionName))}")
    ] = "auto",
    memory: Annotated[
        str, typer.Option(help=f"where weights lie: {' | '.join(get_args(MemoryName))}")
    ] = "auto",
    parallel: Annotated[
        list[str] | None,
        typer.Option(
            help="ranks that draw each picture together: ulysses=2, ring=2, cfg=2, tensor=2 or "
            "several of them with commas between, or stages=2; auto: what is best for the cards "
            "here; beside it, or with torchrun: piflux, distrifusion or pipefusion, not quite exact"
        ),
    ] = None,
    again: Annotated[
        Path | None,
        typer.Option(
            "--from", help="a picture of ours, to make again; flags beside override its recipe"
        ),
    ] = None,
    show: Annotated[bool, typer.Option(help="show the picture in the terminal")] = True,
    print_: Annotated[
        bool, typer.Option("--print", help="show it where the output is no terminal, too")
    ] = False,
) -> None:
    """Draw pictures of a prompt and write them to files. Started by torchrun, on all its ranks."""
    from rich.console import Console

    console = Console(stderr=True)
    seen: Seen = "always" if print_ else "in a terminal" if show else "never"
    place = None
    before = signal.signal(signal.SIGINT, lambda *_: _end(console))
    try:
        place = place_of(os.environ)
        divided, approximation = ways_asked(parallel or (), place)
        if place and not place.is_first:
            follow_first(device, place)
            return
        if scorer is not None and top_k is None:
            raise InvalidParams("scorer acts only with --top-k: give both", field="scorer")
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
            strength=strength,
            loras=tuple(parse_lora(lora) for lora in loras or ()),
            parallel=approximation,
        )
        asked = GenerationRequest(
            id="generate",
            prompt="" if again and prompt is None else _text(prompt),
            seed=random_seed() if seed is None else seed,
            n=n,
            source=given.read(image, "image"),
            mask=given.read(mask, "mask"),
            references=given.read_all(reference or (), "reference"),
            top_k=top_k,
            params=params,
            output_format=_format_of(output),
        )
        if expand is not None:
            asked = given.expanded(asked, expand)
        check_folder(output)
        opening = wire.Open(
            model,
            divided,
            _word("precision", precision, get_args(PrecisionName)),
            cast(MemoryName, _word("memory", memory, get_args(MemoryName))),
        )
        ranks = partial(gathered, device=device, place=place, console=console)
        if again is None:
            with _engine(opening, ranks, scorer, console, request=asked) as engine:
                deliver(engine, asked, output, console, seen=seen)
        else:
            from fluxline.cli import replay

            original, typed = replay.opened(again), _typed(context)
            if approximation is None:  # then those words are of ranks
                typed -= {"parallel"}
            request = replay.overridden(original.request, asked, typed)
            request = replay.started(original, request, asked)
            if changes := replay.overrides(original.request, request):
                say(console, f"note: overrides the recipe: {', '.join(changes)}", style="yellow")
            model = model if "model" in typed else _registered(original.recipe.model)
            receipt = original.recipe.receipt
            device = device if "device" in typed or receipt is None else _device_of(receipt)
            like = None if changes else receipt
            if "precision" not in typed and receipt is not None:
                precision = _precision_of(receipt)
            if request.params.parallel and receipt is not None and not parallel and place is None:
                divided = ranks_of_recipe(receipt.parallel, again.name, device, console)
            opening = structs.replace(opening, model=model, precision=precision, parallel=divided)
            ranks = partial(ranks, device=device)
            with _engine(opening, ranks, scorer, console, request=request, like=like) as engine:
                request = replace(request, model=engine.models[0].name)
                _draw_again(engine, original, request, output, console, seen=seen)
    except FluxlineError as exc:
        if place is None or place.is_first:
            say(console, f"fluxline: {exc.message}", style="red")
        wrong = isinstance(exc, RequestError | LoadError)
        raise typer.Exit(CANNOT_START if wrong else FAILED) from exc
    except KeyboardInterrupt as exc:
        raise typer.Exit(INTERRUPTED) from exc
    finally:
        signal.signal(signal.SIGINT, before)


def _end(console: "Console") -> NoReturn:
    """End at once, as a Ctrl-C asks: a forward may take seconds, and a thread that is in one when
    the interpreter goes takes the process down with a fault."""
    with suppress(RuntimeError):  # in the middle of a line
        console.show_cursor(True)
        sys.stdout.flush()
    os._exit(INTERRUPTED)


def parse_size(size: str | None) -> tuple[int | None, int | None]:
    """Read "WIDTHxHEIGHT". Raises InvalidParams."""
    if size is None:
        return None, None
    if match := re.fullmatch(r"(\d{1,5})[xX×](\d{1,5})", size.strip()):
        return int(match[1]), int(match[2])
    raise InvalidParams(f"size must be like 512x512; got {size!r}", field="size")


def parse_lora(lora: str) -> LoraRef:
    """Read "NAME" or "NAME:STRENGTH"; a name may have colons of its own."""
    name, _, strength = lora.rpartition(":")
    try:
        return LoraRef(name, float(strength)) if name else LoraRef(lora)
    except ValueError:
        return LoraRef(lora)


def _text(prompt: str | None) -> str:
    if prompt is None:
        raise InvalidParams("give a prompt, or --from and a picture of ours", field="prompt")
    text = sys.stdin.read().strip() if prompt == "-" else prompt
    if not text.strip():
        raise InvalidParams("prompt must not be empty", field="prompt")
    return text


def _word(option: str, said: str, known: Sequence[str]) -> str:
    """What was said, if it is known: other ranks could not read it. Raises ConfigError."""
    if said not in known:
        raise ConfigError(f"{option} must be one of {', '.join(known)}; got {said!r}")
    return said


def _format_of(output: Path | None) -> ImageFormat:
    if output is None:
        return "png"
    if output.suffix.lower() not in FORMATS:
        message = f"output must end in {', '.join(FORMATS)}; got {output.name!r}"
        raise InvalidParams(message, field="output")
    if not output.parent.is_dir():
        raise InvalidParams(f"no folder {output.parent}", field="output")
    return FORMATS[output.suffix.lower()]


def _typed(context: typer.Context) -> set[str]:
    """The options that were typed."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source and source.name == "COMMANDLINE"}


def _registered(model: str) -> str:
    """The model of a recipe, if its name says where it lies."""
    from fluxline.models.registry import MODELS

    if model in MODELS:
        return model
    message = f"the recipe was drawn by {model!r}, which is not in the registry: give its --model"
    raise InvalidParams(message, field="model")


def _device_of(receipt: "Receipt") -> str:
    """The kind of device that a picture was drawn on, or the best one if it is not here."""
    from fluxline.engine.build import pick_device

    kind = receipt.device.split(" ")[0]
    try:
        return pick_device(kind).type
    except ConfigError:
        return "auto"


def _lora_folder() -> Path:
    """Where a server started here would have them. Raises ConfigError."""
    from fluxline.settings import load_settings

    return load_settings().lora_folder()


def _precision_of(receipt: "Receipt") -> str:
    """How a picture's weights were held; what was of a file's own making is so again by itself."""
    return receipt.precision if receipt.precision in get_args(PrecisionName) else "auto"


@contextmanager
def _engine(
    opening: wire.Open,
    gathered: Callable[[wire.Open, SamplingParams], AbstractContextManager[Together]],
    scorer: str | None,
    console: "Console",
    *,
    request: GenerationRequest,
    like: "Receipt | None" = None,
) -> Iterator["Engine"]:
    """Open an engine for a request, on all ranks; `like` the one of a receipt, it draws one picture
    at a time."""
    with ExitStack() as stack:
        with console.status(f"opening {opening.model}"):
            together = stack.enter_context(gathered(opening, request.params))
            from fluxline.engine import Budget, Engine, LoraSources, keep_memory

            keep_memory()
            budget = None if like is None else Budget(batch_tokens=1, resident_tokens=1)
            threads = None if like is None else like.threads
            engine = Engine(
                opening.model,
                device=together.device,
                precision=opening.precision,
                memory=opening.memory,
                scorer=scorer,
                budget=budget,
                threads=threads,
                loras=LoraSources(folder=_lora_folder() if request.params.loras else None),
                crew=together.crew,
                tell=together.tell,
                on_lost=together.on_lost,
            )
        for note in engine.models[0].notes:
            say(console, f"note: {note}", style="yellow")
        with engine:
            yield engine


def _draw_again(
    engine: "Engine",
    original: "Original",
    request: GenerationRequest,
    output: Path | None,
    console: "Console",
    *,
    seen: Seen,
) -> None:
    """Draw a picture from its own file; say before what may differ, and after what does."""
    from fluxline.cli import replay
    from fluxline.engine.finish import SOFTWARE

    now = engine.receipts(request)[0]
    if doubts := replay.doubts(original, request, now, SOFTWARE):
        lines = "; ".join(doubts)
        say(
            console,
            f"note: the bytes may not be those of {original.path.name}: {lines}",
            style="yellow",
        )
    picture = deliver(engine, request, output, console, seen=seen)
    is_same_kind = request.output_format == original.format
    if is_same_kind and not replay.overrides(original.request, request):
        say(console, replay.verdict(original, picture.data), style="default")
