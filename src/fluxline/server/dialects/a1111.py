"""The AUTOMATIC1111 web UI's API: its names and defaults to a request.

Its clients send a cfg_scale and a negative prompt blindly. For FLUX the first is guidance, as Forge
has it, and the second has an effect only with an explicit true_cfg_scale: anything else would
double the work and burn the picture.
"""

import re
from dataclasses import dataclass, replace
from typing import cast

from fluxline.ability import STRENGTH
from fluxline.errors import InvalidParams
from fluxline.images import SAMPLER_TITLES
from fluxline.request import (
    SEED_LIMIT,
    GenerationRequest,
    LoraRef,
    SamplerName,
    SamplingParams,
    ScheduleName,
)
from fluxline.server.body import (
    LARGEST_SCALE,
    check_prompt,
    ignored,
    read_parallel,
    read_prompt,
    read_seed,
    read_sides,
    refuse_unserved,
)
from fluxline.server.choice import Choice, read_priority
from fluxline.server.fields import Fields, MissingParam, UnsupportedParam
from fluxline.server.reader import Fit, Manner
from fluxline.server.uploads import Found, find

DEFAULT_STEPS, MOST_STEPS = 50, 150
DEFAULT_SIDE = 512  # px
PREVIEWS = 8  # of one picture, for whoever asks how far it is
SAMPLERS = {title.lower(): name for name, title in SAMPLER_TITLES.items()}
SCHEDULES = {
    "simple": "simple",
    "automatic": "simple",
    "normal": "simple",
    "karras": "karras",
    "exponential": "exponential",
    "beta": "beta",
}
UNSERVED = ("enable_hr", "latent_mask", "refiner_checkpoint", "script_name")
"""They would change the picture: refused when they ask for something."""
WITHOUT_EFFECT = (
    "styles",
    "subseed",
    "subseed_strength",
    "restore_faces",
    "tiling",
    "eta",
    "s_churn",
    "s_tmax",
    "s_tmin",
    "s_noise",
    "save_images",
    "alwayson_scripts",
    "script_args",
    "send_images",
    "do_not_save_samples",
    "do_not_save_grid",
    "seed_resize_from_h",
    "seed_resize_from_w",
    "override_settings_restore_afterwards",
    "force_task_id",
    "hr_upscaler",
    "hr_scale",
    "hr_second_pass_steps",
    "hr_resize_x",
    "hr_resize_y",
    "firstphase_width",
    "firstphase_height",
    "infotext",
    "image_cfg_scale",
    "initial_noise_multiplier",
)
OF_MASKS = (
    "mask_blur",
    "mask_blur_x",
    "mask_blur_y",
    "inpainting_fill",
    "inpaint_full_res",
    "inpaint_full_res_padding",
    "inpainting_mask_invert",
)
"""Clients send them always; without a mask they mean nothing."""
INIT_IMAGES = "init_images"
FITS: tuple[Fit, ...] = ("stretched", "cropped", "padded")
"""What resize_mode may be, by its number: how a picture of another shape is made to fit."""
MASK_BLUR, MOST_BLUR = 4, 256  # px
FILLED, ORIGINAL = 0, 1
"""Of inpainting_fill, from what is masked begins: the colours around it, or itself."""
LORA = re.compile(r"\s*<lora:(?P<name>[^:<>]+)(?::(?P<strength>[^<>]*))?>", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A body, understood."""

    request: GenerationRequest
    batch_size: int
    found: Found | None  # the picture to draw on, and its mask
    warnings: tuple[str, ...]


def read(fields: Fields, choice: Choice, *, max_n: int, request_id: str) -> Asked:
    """Understand a body. Raises RequestError naming the field that is wrong."""
    info = choice.info
    prompt, loras = _loras_in(read_prompt(fields))
    check_prompt(prompt)
    refuse_unserved(fields, UNSERVED)
    batch_size = fields.integer("batch_size", low=1, high=max_n) or 1
    n = batch_size * (fields.integer("n_iter", low=1, high=max_n) or 1)
    if n > max_n:
        raise InvalidParams(f"batch_size x n_iter must be at most {max_n}; got {n}", field="n_iter")
    seed = read_seed(fields, low=-1, high=SEED_LIMIT - 1 - n)
    params, warnings = _params(fields, choice)
    fields.value("include_init_images")  # read where what was sent is echoed
    found, more = _pictures(fields)
    warnings += more
    if found is None:
        params = replace(params, strength=None)  # clients send it to txt2img, too
    elif found.mask is not None and params.strength is None:
        params = replace(params, strength=STRENGTH)  # there, what is masked is not all anew
    params = replace(params, loras=loras)
    overridden = fields.nested("override_settings") or Fields({})
    overridden.skip("sd_model_checkpoint")  # the door has chosen by it
    warnings += [f"{name[:64]} is ignored" for name in overridden.unread()[:16]]
    warnings += [f"{name} has no effect" for name in WITHOUT_EFFECT if fields.asks(name)]
    warnings += ignored(fields)
    steps = params.steps or info.default_steps
    request = GenerationRequest(
        id=request_id,
        prompt=prompt,
        seed=seed,
        n=n,
        model=info.name,
        profile=choice.profile,
        priority=read_priority(fields),
        params=params,
        preview_every=max(1, steps // PREVIEWS),
    )
    return Asked(
        request=request,
        batch_size=batch_size,
        found=found,
        warnings=tuple(warnings),
    )


def refuse_pictures(fields: Fields) -> None:
    """Refuse pictures where text alone is drawn. Raises UnsupportedParam."""
    if fields.asks(INIT_IMAGES):
        message = "pictures to start from go to /sdapi/v1/img2img"
        raise UnsupportedParam(message, field=INIT_IMAGES)


def need_pictures(fields: Fields) -> None:
    """See that there is a picture to start from. Raises MissingParam."""
    if not fields.value(INIT_IMAGES):
        message = "init_images is required: the picture to start from"
        raise MissingParam(message, field=INIT_IMAGES)


def checkpoint_of(fields: Fields) -> str | None:
    """The model that override_settings names, if it names one."""
    overridden = fields.nested("override_settings")
    return overridden.text("sd_model_checkpoint") if overridden else None


def _params(fields: Fields, choice: Choice) -> tuple[SamplingParams, list[str]]:
    warnings, info = [], choice.info
    sampler, schedule = _sampler(fields)
    scale = fields.number("cfg_scale", low=0, high=LARGEST_SCALE)
    distilled = fields.number("distilled_cfg_scale", low=0, high=LARGEST_SCALE)
    true_scale = fields.number("true_cfg_scale", low=0, high=LARGEST_SCALE)
    negative = fields.text("negative_prompt") or ""
    guidance = distilled if distilled is not None else scale
    if not info.is_guided:
        if guidance is not None:
            warnings.append(f"cfg_scale has no effect: {info.name} has no guidance")
        guidance = None
    if negative and true_scale is None and info.cfg_scale <= 1:
        warnings.append("negative_prompt has no effect; give true_cfg_scale, at twice the work")
        negative = ""
    width, height = read_sides(fields)
    asked = SamplingParams(
        width=width,
        height=height,
        steps=fields.integer("steps", low=1, high=MOST_STEPS),
        sampler=sampler,
        schedule=schedule,
        guidance=guidance,
        cfg_scale=true_scale,
        negative_prompt=negative,
        strength=fields.number("denoising_strength", low=0, high=1),
        parallel=read_parallel(fields),
    )
    params = choice.fill(asked)
    steps = params.steps or DEFAULT_STEPS
    if steps > info.max_steps:
        warnings.append(f"steps are {info.max_steps}, the most that {info.name} takes")
    params = replace(
        params,
        width=params.width or DEFAULT_SIDE,
        height=params.height or DEFAULT_SIDE,
        steps=min(steps, info.max_steps),
    )
    return params, warnings


def _loras_in(prompt: str) -> tuple[str, tuple[LoraRef, ...] | None]:
    """The prompt without its <lora:name:strength>, and what these name. Raises InvalidParams."""
    loras = tuple(_lora(match) for match in LORA.finditer(prompt))
    return (LORA.sub("", prompt).strip(), loras) if loras else (prompt, None)


def _lora(match: re.Match[str]) -> LoraRef:
    try:
        return LoraRef(match["name"].strip(), float(match["strength"] or 1.0))
    except ValueError:
        message = f"a LoRA must be like <lora:name:0.8>; got {match[0].strip()[:60]}"
        raise InvalidParams(message, field="prompt") from None


def _pictures(fields: Fields) -> tuple[Found | None, list[str]]:
    """The picture to draw on and its mask, and what of their manner is not as it was asked.

    Raises InvalidParams, UnsupportedParam.
    """
    mode = fields.integer("resize_mode", low=0, high=3) or 0
    if mode >= len(FITS):
        message = "resize_mode must be 0 (stretch), 1 (crop) or 2 (fill); 3 is not served"
        raise UnsupportedParam(message, field="resize_mode")
    manner = Manner(fit=FITS[mode])
    warnings: list[str] = []
    if fields.asks("mask"):
        manner, warnings = _of_mask(fields, manner)
    fields.skip(*OF_MASKS)
    found = find(fields, manner, images=(INIT_IMAGES,))
    if found and found.expand:
        message = "expand is not served here: ask /v1/images/edits"
        raise UnsupportedParam(message, field="expand")
    if found and found.references:
        message = f"{INIT_IMAGES}: one picture may be given; got {1 + len(found.references)}"
        raise UnsupportedParam(message, field=INIT_IMAGES)
    return found, warnings


def _of_mask(fields: Fields, manner: Manner) -> tuple[Manner, list[str]]:
    """How a mask is meant, in that program's words: what is painted or white is redrawn."""
    warnings = []
    blur = fields.number("mask_blur", low=0, high=MOST_BLUR)
    blur = MASK_BLUR if blur is None else blur
    across = fields.number("mask_blur_x", low=0, high=MOST_BLUR)
    down = fields.number("mask_blur_y", low=0, high=MOST_BLUR)
    fill = fields.integer("inpainting_fill", low=0, high=3) or FILLED
    if fill not in (FILLED, ORIGINAL):
        warnings.append(f"inpainting_fill {fill} is not served: what is masked begins as it is")
    if fields.asks("inpaint_full_res"):
        warnings.append("inpaint_full_res is not served: the whole picture is drawn")
    manner = Manner(
        fit=manner.fit,
        is_painted=True,
        is_inverted=fields.integer("inpainting_mask_invert", low=0, high=1) == 1,
        blur=(blur if across is None else across, blur if down is None else down),
        is_filled=fill == FILLED,
    )
    return manner, warnings


def _sampler(fields: Fields) -> tuple[SamplerName, ScheduleName]:
    """Sampler and schedule; older clients say both in one name, "DPM++ 2M Karras"."""
    title = fields.text("sampler_name", "sampler_index") or "Euler"
    word = fields.text("scheduler") or ""
    name = SAMPLERS.get(title.lower())
    if name is None:
        first, _, last = title.lower().rpartition(" ")
        name, word = SAMPLERS.get(first), word or last
    if name is None:
        known = ", ".join(SAMPLER_TITLES.values())
        raise InvalidParams(f"sampler_name must be one of {known}", field="sampler_name")
    schedule = SCHEDULES.get((word or "simple").lower())
    if schedule is None:
        known = ", ".join(SCHEDULES)
        raise InvalidParams(f"scheduler must be one of {known}", field="scheduler")
    return cast(SamplerName, name), cast(ScheduleName, schedule)
