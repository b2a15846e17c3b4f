"""The batch dialect: many pictures of one prompt, as different as asked, and the best of them.

Its body to a plan, and pictures back with what each was drawn with.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast, get_args

from fluxline.ability import ModelInfo
from fluxline.errors import InvalidParams
from fluxline.request import (
    GenerationRequest,
    ImageResult,
    Planned,
    SamplerName,
    SamplingParams,
    best,
)
from fluxline.server.body import (
    FROM_PICTURE,
    LARGEST_SCALE,
    MOST_STEPS,
    ignored,
    read_format,
    read_lora_name,
    read_parallel,
    read_prompt,
    read_sides,
    refuse_unserved,
)
from fluxline.server.choice import Choice, read_priority
from fluxline.server.dialects.diversity import Choice as Drawn
from fluxline.server.dialects.diversity import Diversity, SeedPolicy
from fluxline.server.fields import Fields

T = TypeVar("T")

OWN = ("nof_images", "gpus", "diversity", "stream", "top_k")
"""One of these, null or not, says that a body is of this dialect."""
DEFAULT_IMAGES = 16
DEFAULT_SIDE = 512  # px
MOST_GPUS = 1024
SCALES = {"low": 0.001, "high": LARGEST_SCALE}
SEEDS = get_args(SeedPolicy)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A body, understood. choices: what each picture of the plan was given."""

    request: GenerationRequest
    choices: tuple[Drawn, ...]
    preset: str | None
    is_cfg_applied: bool
    eta: float
    gpus: int
    is_streamed: bool
    warnings: tuple[str, ...]


def read(fields: Fields, choice: Choice, *, most: int, request_id: str) -> Asked:
    """Understand a body. Raises RequestError naming the field that is wrong."""
    prompt, info = read_prompt(fields), choice.info
    count = fields.integer("nof_images", low=1, high=most) or min(DEFAULT_IMAGES, most)
    gpus = fields.integer("gpus", low=1, high=MOST_GPUS) or 1
    is_cfg_applied = info.guidance is not None
    width, height = read_sides(fields)
    filled = choice.fill(SamplingParams(width=width, height=height))
    width, height = filled.width or DEFAULT_SIDE, filled.height or DEFAULT_SIDE
    choices = tuple(_diversity(fields, info, filled).plan(count))
    eta = fields.number("eta", low=0, high=1) or 0.0
    loras, parallel = read_lora_name(fields), read_parallel(fields)
    output_format = read_format(fields, usual="jpeg")
    top_k = fields.integer("top_k", low=1, high=1_000_000)
    request = GenerationRequest(
        id=request_id,
        prompt=prompt,
        seed=choices[0].seed,
        model=info.name,
        profile=choice.profile,
        priority=read_priority(fields),
        plan=tuple(
            replace(one, params=replace(one.params, loras=loras, parallel=parallel))
            for one in (_planned(each, info, width, height, eta) for each in choices)
        ),
        spread=gpus,
        output_format=output_format,
        top_k=None if top_k is None else min(top_k, count),
    )
    is_streamed = bool(fields.boolean("stream"))
    return Asked(
        request=request,
        choices=choices,
        preset=choice.preset,
        is_cfg_applied=is_cfg_applied,
        eta=eta,
        gpus=gpus,
        is_streamed=is_streamed,
        warnings=tuple(_warnings(fields, is_cfg_applied)),
    )


def answer(
    asked: Asked,
    images: Sequence[ImageResult],
    links: Mapping[str, str],
    *,
    job_id: str,
    gpus_used: int,
    began: float,
) -> dict[str, Any]:
    """Spell finished pictures, the best first if top_k was asked, else in the plan's order."""
    kept = best(images, asked.request.top_k)
    said = dict.fromkeys((*asked.warnings, *(line for image in kept for line in image.warnings)))
    if {("ddim", 0.0), ("euler", 0.0)} <= {(i.params.sampler, i.params.eta) for i in images}:
        said["ddim with eta 0 draws what euler draws, but for the seed; give eta"] = None
    if asked.eta and all(image.params.sampler != "ddim" for image in images):
        said["eta has no effect: only ddim reads it, and none was drawn with it"] = None
    return {
        "prompt": asked.request.prompt,
        "count": len(kept),
        "images": [
            {**image_of(asked, image, links), **_rank(image, place)}
            for place, image in enumerate(kept, 1)
        ],
        "latency_ms": round(1000 * (time.monotonic() - began)),
        "id": job_id,
        "model": kept[0].model,
        "profile": kept[0].profile,
        "backend": kept[0].backend,
        "preset": asked.preset,
        "drawn": len(images),
        "gpus_used": gpus_used,
        "warnings": list(said),
    }


def image_of(asked: Asked, image: ImageResult, links: Mapping[str, str]) -> dict[str, Any]:
    """Spell one picture with what it was drawn with."""
    choice, params = asked.choices[image.index], image.params
    return {
        "url": links[image.stored or ""],
        "index": image.index,
        "width": image.width,
        "height": image.height,
        "sampling_params": {
            "sampler": params.sampler,
            "steps": params.steps,
            "cfg_scale": choice.cfg_scale if params.guidance is None else params.guidance,
            "cfg_applied": asked.is_cfg_applied,
            "seed": image.seed,
        },
    }


def _rank(image: ImageResult, place: int) -> dict[str, Any]:
    if image.score is None:
        return {}
    return {"score": image.score, "rank": place, "scorer": image.scorer}


def _diversity(fields: Fields, info: ModelInfo, filled: SamplingParams) -> Diversity:
    """What may vary. What is given for the whole request is one value of its axis, and so is what
    a preset has filled in where neither is given.
    """
    given = fields.nested("diversity") or Fields({})
    usual = Diversity()
    samplers = given.listed("samplers", lambda f, name: f.choice(name, of=info.samplers))
    steps = given.listed("nof_steps", lambda f, name: f.integer(name, low=1, high=MOST_STEPS))
    scales = given.listed("cfg_scales", lambda f, name: f.number(name, **SCALES))
    policy = given.choice("seeds", of=SEEDS)
    base_seed = given.integer("base_seed", low=0, high=2**63 - 1)

    sampler = fields.choice("sampler", of=info.samplers)
    one_steps = fields.integer("num_inference_steps", "steps", low=1, high=MOST_STEPS)
    one_scale = fields.number("guidance_scale", "cfg_scale", **SCALES)
    seed = fields.integer("seed", low=0, high=2**63 - 1)
    _refuse_both("samplers", sampler, samplers)
    _refuse_both("nof_steps", one_steps, steps)
    _refuse_both("cfg_scales", one_scale, scales)
    _refuse_both("base_seed", seed, base_seed)
    if unknown := given.unread():
        message = f"{unknown[0][:64]} is no axis of diversity"
        raise InvalidParams(message, field=unknown[0][:64])
    scales = _axis(one_scale, scales, filled.guidance, usual.cfg_scales)
    return Diversity(
        samplers=cast(list[SamplerName], _axis(sampler, samplers, None, usual.samplers)),
        steps=_axis(one_steps, steps, filled.steps, usual.steps),
        cfg_scales=scales if info.is_guided else scales[:1],
        seeds=cast(SeedPolicy, policy or usual.seeds),
        base_seed=base_seed if seed is None else seed,
    )


def _refuse_both(axis: str, one: object, many: object) -> None:
    """Refuse an axis of which one value is given, too. Raises InvalidParams."""
    if one is not None and many is not None:
        message = f"diversity.{axis} and a value for the whole request exclude each other"
        raise InvalidParams(message, field=f"diversity.{axis}")


def _axis(one: T | None, many: list[T] | None, filled: T | None, usual: Sequence[T]) -> list[T]:
    """The values of an axis: the one given, those given, the preset's, or the usual ones."""
    if one is not None:
        return [one]
    if many is not None:
        return many
    return list(usual) if filled is None else [filled]


def _planned(choice: Drawn, info: ModelInfo, width: int, height: int, eta: float) -> Planned:
    return Planned(
        seed=choice.seed,
        params=SamplingParams(
            width=width,
            height=height,
            steps=choice.steps,
            sampler=choice.sampler,
            guidance=choice.cfg_scale if info.is_guided else None,
            eta=eta if choice.sampler == "ddim" else 0.0,
        ),
    )


def _warnings(fields: Fields, is_cfg_applied: bool) -> list[str]:
    refuse_unserved(fields, FROM_PICTURE)
    warnings = []
    if not is_cfg_applied:
        warnings.append("this model has no guidance: cfg_scale does not vary and has no effect")
    return warnings + ignored(fields)
