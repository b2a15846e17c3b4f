"""The single dialect: one picture, its fields echoed as they were used, and a link that works."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from fluxline.ability import ModelInfo
from fluxline.errors import InvalidParams, RequestError, UnknownLora
from fluxline.request import GenerationRequest, ImageResult, SamplingParams
from fluxline.server.body import (
    LARGEST_SCALE,
    ignored,
    read_format,
    read_lora_name,
    read_parallel,
    read_prompt,
    read_seed,
)
from fluxline.server.choice import Choice, read_priority
from fluxline.server.fields import Fields
from fluxline.server.machine import GIB, Memory
from fluxline.server.uploads import Found, find

SMALLEST_SIDE, LARGEST_SIDE, DEFAULT_SIDE = 256, 1024, 512  # px
DEFAULT_STEPS, MOST_STEPS = 25, 100
DEFAULT_GUIDANCE, MOST_GUIDANCE = 3.5, 20.0
TRUE_CFG = 3.5  # the scale of a negative prompt, unless it is given


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A body, understood."""

    request: GenerationRequest
    choice: Choice
    found: Found | None  # pictures to draw from
    warnings: tuple[str, ...]


def read(fields: Fields, choice: Choice, *, request_id: str) -> Asked:
    """Understand a body. Raises RequestError naming the field that is wrong."""
    prompt, info = read_prompt(fields), choice.info
    negative_prompt = fields.text("negative_prompt") or ""
    scale = fields.number("true_cfg_scale", low=0, high=LARGEST_SCALE)
    seed = read_seed(fields, high=2**32 - 1)
    output_format = read_format(fields, usual="png")
    steps = fields.integer("num_inference_steps", "steps", low=1, high=MOST_STEPS)
    guidance = fields.number("guidance_scale", "guidance", low=0, high=MOST_GUIDANCE)
    found = find(fields)
    params = choice.fill(
        SamplingParams(
            width=_side(fields, "width"),
            height=_side(fields, "height"),
            steps=steps,
            guidance=guidance,
            cfg_scale=_true_scale(scale, negative_prompt, info),
            negative_prompt=negative_prompt,
            strength=fields.number("strength", "denoising_strength", low=0, high=1),
            loras=read_lora_name(fields),
            parallel=read_parallel(fields),
        ),
        has_shape=found is not None,
    )
    usual = None if found else DEFAULT_SIDE  # else it follows the picture
    request = GenerationRequest(
        id=request_id,
        prompt=prompt,
        seed=seed,
        model=info.name,
        profile=choice.profile,
        priority=read_priority(fields),
        output_format=output_format,
        params=replace(
            params,
            width=params.width or usual,
            height=params.height or usual,
            steps=params.steps or min(DEFAULT_STEPS, info.max_steps),
            guidance=_guidance(params.guidance, info),
        ),
    )
    warnings = ignored(fields)
    if params.loras is None and fields.given("lora_weight"):
        warnings.insert(0, "lora_weight has no effect without lora_name")
    return Asked(request=request, choice=choice, found=found, warnings=tuple(warnings))


def started(asked: Asked, request: GenerationRequest, told: Sequence[str]) -> Asked:
    """What was asked, now that its request has its pictures, of which something is told."""
    return replace(asked, request=request, warnings=(*asked.warnings, *told))


def answer(
    asked: Asked,
    image: ImageResult,
    link: str,
    *,
    job_id: str,
    memory: Memory,
    began: float,
) -> dict[str, Any]:
    """Spell the picture as the original did, with numbers beside its strings."""
    took_s, params = time.monotonic() - began, image.params
    return {
        "message": "Image generated successfully",
        "image_url": link,
        "generation_time": f"{took_s:.2f}s",
        "generation_time_s": round(took_s, 3),
        **memory_told(memory),
        "model_type": model_type(asked.choice.info),
        **_lora(image),
        "num_inference_steps": params.steps,
        "guidance_scale": params.guidance,
        "width": image.width,
        "height": image.height,
        "seed": image.seed,
        "negative_prompt": params.negative_prompt or None,
        "id": job_id,
        "model": image.model,
        "profile": image.profile,
        "backend": image.backend,
        "preset": asked.choice.preset,
        "warnings": list(dict.fromkeys((*asked.warnings, *image.warnings))),
    }


def in_these_words(error: RequestError) -> RequestError:
    """A refusal that names what it is about as this dialect does."""
    about_lora = isinstance(error, InvalidParams) and error.field == "loras"
    if about_lora or isinstance(error, UnknownLora):
        return InvalidParams(error.message, field="lora_name")
    return error


def _lora(image: ImageResult) -> dict[str, Any]:
    """The LoRA that a picture was drawn with, as the original spells it, for it knows of one."""
    first = next(iter(image.params.loras or ()), None)
    return {
        "lora_applied": first and first.name,
        "lora_weight": first and first.strength,
    }


def memory_told(memory: Memory) -> dict[str, Any]:
    """Memory as the original spells it, and in bytes."""
    told: dict[str, Any] = {}
    for name, count in (
        ("vram_usage", memory.vram_used_bytes),
        ("system_memory_used", memory.ram_used_bytes),
        ("system_memory_total", memory.ram_total_bytes),
    ):
        told |= {f"{name}_gb": f"{count / GIB:.2f}GB", f"{name}_bytes": count}
    return told


def model_type(info: ModelInfo) -> str:
    """What is loaded, in the original's words: flux_bf16_gpu, flux_fp4_gpu, flux_fp32_cpu."""
    place = "cpu" if info.device.startswith("cpu") else "gpu"
    return f"flux_{info.precision}_{place}"


def _side(fields: Fields, name: str) -> int | None:
    return fields.integer(name, low=SMALLEST_SIDE, high=LARGEST_SIDE)


def _guidance(asked: float | None, info: ModelInfo) -> float | None:
    """What was asked; else the original's default, for a model that reads it."""
    if asked is not None or info.guidance is None:
        return asked
    return DEFAULT_GUIDANCE


def _true_scale(asked: float | None, negative_prompt: str, info: ModelInfo) -> float | None:
    """What was asked; for a model that does not guide by itself, only beside a negative prompt."""
    if info.cfg_scale > 1:
        return asked
    return (TRUE_CFG if asked is None else asked) if negative_prompt else None
