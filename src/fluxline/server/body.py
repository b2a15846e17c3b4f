"""The fields that the doors share: what to draw, how large, how, and in which format.

Knows no protocol's answer. A name stands here once, with all its aliases.
"""

import re
from collections.abc import Iterable
from typing import cast, get_args

from fluxline.ability import MOST_LORAS, STRONGEST
from fluxline.approximation import Approximation, approximation_of
from fluxline.errors import InvalidParams, RequestError
from fluxline.request import (
    SEED_LIMIT,
    GenerationRequest,
    ImageFormat,
    LoraRef,
    SamplerName,
    SamplingParams,
    ScheduleName,
    random_seed,
)
from fluxline.server.choice import Choice, read_priority
from fluxline.server.fields import Fields, MissingParam, UnsupportedParam
from fluxline.server.uploads import FIELDS
from fluxline.settings import DEFAULT_MODEL

PROMPT_LIMIT = 32_000  # characters
LARGEST_SIDE = 65_535  # px; the model's own limit is checked by the model
MOST_STEPS = 10_000
LARGEST_SCALE = 1_000.0
LONGEST_DEADLINE_S = 86_400
MOST_NAMED = 16  # unknown fields; a body may have thousands

GUIDANCE = ("guidance", "guidance_scale", "distilled_cfg_scale", "cfg")  # ours, and what is sent
FORMATS = (*get_args(ImageFormat), "jpg")
FROM_PICTURE = (*FIELDS, "strength", "denoising_strength")
"""Where no picture is started from, these are refused: without them it would be another one."""
UNSUPPORTED = ("markup",)
"""They would change the picture: ignoring them would be a lie."""
MOST_WEIGHT = 2.0
"""Of a LoRA, where one is named by `lora_name`; `loras` take what the engine takes."""
_SIZE = re.compile(r"([0-9]{1,5})[xX]([0-9]{1,5})", re.ASCII)


class PromptTooLong(InvalidParams):
    """The prompt has more characters than the contract allows."""

    code = "prompt_too_long"


class BlankPrompt(InvalidParams):
    """The prompt says nothing."""


def read_request(
    fields: Fields, choice: Choice, *, max_n: int, request_id: str
) -> GenerationRequest:
    """Read what is to be drawn, but for the pictures to draw from, which `uploads` reads.

    Raises RequestError naming the field that is wrong.
    """
    prompt = read_prompt(fields)
    n = fields.integer("n", low=1, high=max_n) or 1
    fields.skip(*FIELDS)
    params = choice.fill(_params(fields), has_shape=fields.has(*FIELDS))
    output_format = read_format(fields, usual="png")
    compression = fields.integer("output_compression", low=0, high=100)
    seed = _seed(fields, n)
    top_k = fields.integer("top_k", low=1, high=n)
    for name in UNSUPPORTED:
        if fields.given(name):
            raise UnsupportedParam(f"{name} is not served here yet; leave it out", field=name)
    return GenerationRequest(
        id=request_id,
        prompt=prompt,
        seed=seed,
        n=n,
        model=choice.info.name,
        profile=choice.profile,
        priority=read_priority(fields),
        params=params,
        output_format=output_format,
        compression=compression,
        top_k=top_k,
    )


def read_prompt(fields: Fields) -> str:
    """Read what is to be drawn. Raises InvalidParams, MissingParam, PromptTooLong."""
    prompt = fields.text("prompt")
    if prompt is None:
        raise MissingParam("prompt is required: say what to draw", field="prompt")
    check_prompt(prompt)
    return prompt


def check_prompt(prompt: str) -> None:
    """Refuse a prompt that says nothing or too much. Raises BlankPrompt, PromptTooLong."""
    if not prompt.strip():
        raise BlankPrompt("prompt must not be blank: say what to draw", field="prompt")
    _check_length(prompt, "prompt")


def read_sides(fields: Fields) -> tuple[int | None, int | None]:
    """Read width and height, in px."""
    width = fields.integer("width", low=1, high=LARGEST_SIDE)
    return width, fields.integer("height", low=1, high=LARGEST_SIDE)


def read_format(fields: Fields, *, usual: ImageFormat) -> ImageFormat:
    """Read in which format the pictures shall be."""
    word = fields.choice("output_format", of=FORMATS) or usual
    return cast(ImageFormat, "jpeg" if word == "jpg" else word)


def read_seed(fields: Fields, *, low: int = 0, high: int = SEED_LIMIT - 1) -> int:
    """Read a seed. None, or -1 where it may be given, is any."""
    seed = fields.integer("seed", low=low, high=high)
    return random_seed() if seed is None or seed == -1 else seed


def read_loras(fields: Fields) -> tuple[LoraRef, ...] | None:
    """Read which LoRAs act: names, or objects of name and strength. None: nothing is said.

    Raises InvalidParams.
    """
    value = fields.value("loras", "lora")
    if value is None:
        return None
    if not isinstance(value, list):
        value = [value]
    if len(value) > MOST_LORAS:
        raise InvalidParams(f"loras must be at most {MOST_LORAS}; got {len(value)}", field="loras")
    return tuple(_lora(one, k) for k, one in enumerate(value))


def read_lora_name(fields: Fields) -> tuple[LoraRef, ...] | None:
    """Read `lora_name` and `lora_weight`, as the dual service has them. Raises InvalidParams."""
    name = fields.text("lora_name")
    weight = fields.number("lora_weight", low=0, high=MOST_WEIGHT)
    if not name:
        return None
    return (LoraRef(name, 1.0 if weight is None else weight),)


def read_parallel(fields: Fields) -> Approximation | None:
    """Read whether ranks may approximate, like `piflux,sync=2`. Raises InvalidParams."""
    text = fields.text("parallel")
    return approximation_of(text) if text else None


def _lora(value: object, k: int) -> LoraRef:
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, dict):
        message = f"loras[{k}] must be a name, or an object of name and strength"
        raise InvalidParams(message, field="loras")
    one = Fields(value, inside=f"loras[{k}].")
    name = one.text("name")
    strength = one.number("strength", "scale", "weight", low=-STRONGEST, high=STRONGEST)
    if not name:
        raise MissingParam(f"loras[{k}].name is required", field="loras")
    refuse_unread(one)
    return LoraRef(name, 1.0 if strength is None else strength)


def read_deadline(fields: Fields) -> float | None:
    """Read in how many seconds a request must be done."""
    return fields.number("deadline_s", low=0, high=LONGEST_DEADLINE_S)


def refuse_unserved(fields: Fields, names: Iterable[str]) -> None:
    """Refuse what asks for something that is not served yet. Raises UnsupportedParam."""
    for name in names:
        if fields.asks(name):
            raise UnsupportedParam(f"{name} is not served here yet; leave it out", field=name)


def refuse_unread(fields: Fields) -> None:
    """Refuse a field that nobody has read. Raises UnsupportedParam."""
    if unknown := fields.unread():
        raise UnsupportedParam(f"unknown field {unknown[0][:64]!r}", field=unknown[0][:64])


def ignored(fields: Fields) -> list[str]:
    """Warn of the fields that nobody has read, or the first of many.

    A name is the caller's text: quoted and cut, so that it cannot flood the answer.
    """
    return [f"unknown field {name[:64]!r} is ignored" for name in fields.unread()[:MOST_NAMED]]


def warnings_of(fields: Fields, request: GenerationRequest) -> list[str]:
    """Say what was given without effect. Call it when all else has been read.

    Raises UnsupportedParam instead for a field nobody reads, if the caller is `strict`.
    """
    warnings = []
    if request.output_format == "png" and request.compression is not None:
        warnings.append("output_compression has no effect on png")
    asked = fields.text("model")
    if asked and asked not in (request.model, request.profile, DEFAULT_MODEL):
        warnings.append(f"{asked[:64]} is an alias here: drawn by {request.model}")
    sides = [name for name in ("width", "height") if fields.given(name)]
    if fields.given("size") and sides:
        warnings.append(f"size is ignored for what {' and '.join(sides)} says")
    if fields.boolean("strict"):
        refuse_unread(fields)
    warnings += ignored(fields)
    if (more := len(fields.unread()) - MOST_NAMED) > 0:
        warnings.append(f"{more} more unknown fields are ignored")
    return warnings


def in_callers_words(error: RequestError, fields: Fields) -> RequestError:
    """Name the field of a refusal as this caller spelt it."""
    if isinstance(error, InvalidParams):
        name = fields.used_name(error.field)
        if error.field in ("width", "height") and not fields.given(name) and fields.given("size"):
            name = "size"
        known = name == error.field
        message = error.message if known else f"{name}: {error.message}"
        return type(error)(message, field=name)
    return error


def _check_length(text: str, field: str) -> None:
    if len(text) > PROMPT_LIMIT:
        message = f"{field} may have at most {PROMPT_LIMIT} characters; got {len(text)}"
        raise PromptTooLong(message, field=field)


def _params(fields: Fields) -> SamplingParams:
    width, height = _size(fields)
    negative_prompt = fields.text("negative_prompt") or ""
    _check_length(negative_prompt, "negative_prompt")
    cfg_scale = fields.number("cfg_scale", "true_cfg_scale", low=0, high=LARGEST_SCALE)
    sampler = fields.choice("sampler", "sampler_name", of=get_args(SamplerName))
    schedule = fields.choice("schedule", "scheduler", of=get_args(ScheduleName))
    defaults = SamplingParams()
    return SamplingParams(
        width=width,
        height=height,
        steps=fields.integer("steps", "num_inference_steps", "step", low=1, high=MOST_STEPS),
        sampler=cast(SamplerName, sampler or defaults.sampler),
        schedule=cast(ScheduleName, schedule or defaults.schedule),
        guidance=fields.number(*GUIDANCE, low=0, high=LARGEST_SCALE),
        cfg_scale=cfg_scale,
        negative_prompt=negative_prompt,
        eta=fields.number("eta", low=0, high=1) or 0.0,
        strength=fields.number("strength", "denoising_strength", low=0, high=1),
        loras=read_loras(fields),
        parallel=read_parallel(fields),
    )


def _size(fields: Fields) -> tuple[int | None, int | None]:
    """Width and height in px. Given by their own names they beat `size`."""
    size = fields.text("size")
    sides: tuple[int | None, int | None] = (None, None)
    if size and size.lower() != "auto":
        match = _SIZE.fullmatch(size)
        if not match or not all(0 < int(side) <= LARGEST_SIDE for side in match.groups()):
            message = f"size must be WIDTHxHEIGHT, like 1024x768, or auto; got {size[:40]!r}"
            raise InvalidParams(message, field="size")
        sides = (int(match[1]), int(match[2]))
    width, height = read_sides(fields)
    return width or sides[0], height or sides[1]


def _seed(fields: Fields, n: int) -> int:
    """The first picture's seed. Picture i takes seed + i, so the last must be a seed, too."""
    seed = read_seed(fields, low=-1)
    if seed + n > SEED_LIMIT:
        message = f"seed must be at most {SEED_LIMIT - n} when n is {n}; got {seed}"
        raise InvalidParams(message, field="seed")
    return seed
