"""What `fluxline generate` is to draw, and by what: as its options say, or as a file's recipe does.

Nothing is opened here but the files that are given.
"""

import re
import sys
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

from msgspec import structs

from fluxline import wire
from fluxline.approximation import Approximation
from fluxline.cli import given
from fluxline.cli.delivery import check_folder, say
from fluxline.cli.options import Options
from fluxline.cli.ranks import ranks_of_recipe
from fluxline.errors import ConfigError, InvalidParams
from fluxline.request import (
    GenerationRequest,
    ImageFormat,
    LoraRef,
    MemoryName,
    PrecisionName,
    SamplingParams,
    random_seed,
)
from fluxline.worker.place import Place

if TYPE_CHECKING:  # a server starts without these
    from rich.console import Console

    from fluxline.cli.replay import Original
    from fluxline.images import Receipt

FORMATS: dict[str, ImageFormat] = {
    ".png": "png",
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".webp": "webp",
    ".avif": "avif",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A request, and the model and device that draw it.

    original: the picture that is drawn again. like: its receipt, where its bytes may come back.
    """

    request: GenerationRequest
    opening: wire.Open
    device: str
    original: "Original | None" = None
    like: "Receipt | None" = None


def of_options(options: Options, divided: str, approximation: Approximation | None) -> Order:
    """What the options ask for. divided, approximation: as `ways_asked` has `--parallel`.

    Raises InvalidParams, ConfigError: some of it cannot be.
    """
    if options.scorer is not None and options.top_k is None:
        raise InvalidParams("scorer acts only with --top-k: give both", field="scorer")
    request = _request(options, approximation)
    check_folder(options.output)
    opening = wire.Open(
        options.model,
        divided,
        _word("precision", options.precision, get_args(PrecisionName)),
        cast(MemoryName, _word("memory", options.memory, get_args(MemoryName))),
    )
    return Order(request=request, opening=opening, device=options.device)


def of_recipe(
    path: Path,
    asked: Order,
    typed: AbstractSet[str],
    place: Place | None,
    console: "Console",
) -> Order:
    """What draws a picture of ours again, but for the options that were typed beside it.

    asked: what all of them ask for. Where it was approximated and no ranks are there or asked for,
    it takes as many as drew it. What is overridden is said. Raises InvalidParams, ConfigError.
    """
    from fluxline.cli import replay

    original = replay.opened(path)
    receipt, opening, device = original.recipe.receipt, asked.opening, asked.device
    are_ranks_open = place is None and "parallel" not in typed
    if asked.request.params.parallel is None:  # then the words of --parallel are of ranks
        typed = typed - {"parallel"}
    request = replay.overridden(original.request, asked.request, typed)
    request = replay.started(original, request, asked.request)
    if changes := replay.overrides(original.request, request):
        say(console, f"note: overrides the recipe: {', '.join(changes)}", style="yellow")
    if "model" not in typed:
        opening = structs.replace(opening, model=_registered(original.recipe.model))
    if receipt is not None and "device" not in typed:
        device = _device_of(receipt)
    if receipt is not None and "precision" not in typed:
        opening = structs.replace(opening, precision=_precision_of(receipt))
    if receipt is not None and request.params.parallel and are_ranks_open:
        divided = ranks_of_recipe(receipt.parallel, path.name, device, console)
        opening = structs.replace(opening, parallel=divided)
    return Order(
        request=request,
        opening=opening,
        device=device,
        original=original,
        like=None if changes else receipt,
    )


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


def _request(options: Options, approximation: Approximation | None) -> GenerationRequest:
    params = _params(options, approximation)
    is_again = options.again is not None
    asked = GenerationRequest(
        id="generate",
        prompt="" if is_again and options.prompt is None else _text(options.prompt),
        seed=random_seed() if options.seed is None else options.seed,
        n=options.n,
        source=given.read(options.image, "image"),
        mask=given.read(options.mask, "mask"),
        references=given.read_all(options.reference or (), "reference"),
        top_k=options.top_k,
        params=params,
        output_format=_format_of(options.output),
    )
    return asked if options.expand is None else given.expanded(asked, options.expand)


def _params(options: Options, approximation: Approximation | None) -> SamplingParams:
    width, height = parse_size(options.size)
    return SamplingParams(
        width=width,
        height=height,
        steps=options.steps,
        guidance=options.guidance,
        sampler=options.sampler,  # type: ignore[arg-type]  # a flag's text: the engine checks it
        schedule=options.schedule,  # type: ignore[arg-type]
        cfg_scale=options.cfg_scale,
        negative_prompt=options.negative_prompt,
        eta=options.eta,
        strength=options.strength,
        loras=tuple(parse_lora(lora) for lora in options.loras or ()),
        parallel=approximation,
    )


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


def _precision_of(receipt: "Receipt") -> str:
    """How a picture's weights were held; what was of a file's own making is so again by itself."""
    return receipt.precision if receipt.precision in get_args(PrecisionName) else "auto"
