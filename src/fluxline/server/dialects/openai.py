"""OpenAI's Images API: its JSON to a `GenerationRequest`, and pictures back into its JSON.

Flue's fields and answer are a part of it. What is accepted without effect is said in `warnings`.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fluxline.ability import ModelInfo, walked_steps
from fluxline.request import GenerationRequest, ImageResult, best, ranks
from fluxline.server.body import read_deadline, read_request, warnings_of
from fluxline.server.choice import Choice
from fluxline.server.fields import Fields, UnsupportedParam
from fluxline.service import Standing

MOST_PARTIALS = 3
BACKGROUNDS = ("auto", "opaque", "transparent")
IGNORED = (
    "moderation",
    "user",
    "style",
    "safety_identifier",
    "complexity",
    "stream_options",
    "input_fidelity",
)
UNSUPPORTED = ("frame_count", "frame_duration_ms", "svg")
MODEL_STAGES = ("encode", "denoise", "decode")
"""What Flue's gen_time counts: neither waiting nor compressing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A body, understood."""

    request: GenerationRequest
    choice: Choice
    wants_url: bool
    is_streamed: bool
    partials: int  # of each picture, at most
    deadline_s: float | None
    warnings: tuple[str, ...]

    @property
    def quality(self) -> str:
        """Of the pictures, in OpenAI's words."""
        return self.choice.quality

    @property
    def size(self) -> str:
        """Of the pictures, as far as is known before they are drawn."""
        params, info = self.request.params, self.choice.info
        return f"{params.width or info.native_width}x{params.height or info.native_height}"


def read(fields: Fields, choice: Choice, *, max_n: int, request_id: str) -> Asked:
    """Understand a body. Raises RequestError naming the field that is wrong."""
    request = read_request(fields, choice, max_n=max_n, request_id=request_id)
    _refuse_unserved(fields)
    steps = request.params.steps or choice.steps
    is_streamed = bool(fields.boolean("stream"))
    partials = fields.integer("partial_images", low=0, high=MOST_PARTIALS) or 0
    wants_url = fields.choice("response_format", of=("b64_json", "url")) == "url"
    deadline_s = read_deadline(fields)
    if not is_streamed and partials:
        message = "partial_images needs stream: true"
        raise UnsupportedParam(message, field="partial_images")
    if is_streamed and wants_url:
        message = "a stream carries its pictures: leave response_format out, or stream"
        raise UnsupportedParam(message, field="response_format")
    without_effect = [name for name in IGNORED if fields.given(name)]
    if without_effect and fields.boolean("strict"):
        name = without_effect[0]
        raise UnsupportedParam(f"{name} has no effect here; leave it out", field=name)
    warnings = [f"{name} is ignored" for name in without_effect]
    warnings += warnings_of(fields, request)
    return Asked(
        request=replace(
            request,
            params=replace(request.params, steps=steps),
            preview_every=_preview_every(steps, partials),
        ),
        choice=choice,
        wants_url=wants_url,
        is_streamed=is_streamed,
        partials=partials,
        deadline_s=deadline_s,
        warnings=tuple(warnings),
    )


def started(
    asked: Asked, request: GenerationRequest, told: Sequence[str], info: ModelInfo
) -> Asked:
    """What was asked, now that its request has its pictures, of which something is told."""
    walked = walked_steps(request, request.params, info)
    request = replace(request, preview_every=_preview_every(walked, asked.partials))
    return replace(asked, request=request, warnings=(*asked.warnings, *told))


def answer(
    asked: Asked, images: Sequence[ImageResult], links: Mapping[str, str], *, job_id: str
) -> dict[str, Any]:
    """Spell finished pictures; `links` by their keys in the store, if links were asked for."""
    kept = best(images, asked.request.top_k)
    places = ranks(kept)
    first = kept[0]
    said = dict.fromkeys((*asked.warnings, *(line for image in kept for line in image.warnings)))
    timings_s = _slowest(images)
    body = {
        "created": int(time.time()),
        "data": [{**_datum(image, links), **judged(image, places)} for image in kept],
        "background": "opaque",
        "output_format": first.format,
        "quality": asked.quality,
        "preset": asked.choice.preset,
        "size": f"{first.width}x{first.height}",
        "usage": usage(asked.request, images),
        "id": job_id,
        "model": first.model,
        "backend": first.backend,
        "profile": first.profile,
        "gen_time": max(_drawing_s(image) for image in images),
        "timings": {f"{stage}_ms": round(1000 * s, 3) for stage, s in timings_s.items()},
        "warnings": list(said),
    }
    return body if asked.wants_url else {**body, "image": first.data}


def judged(image: ImageResult, places: Mapping[int, int]) -> dict[str, Any]:
    """Spell how good a picture is; nothing where nobody has judged it."""
    if image.score is None:
        return {}
    return {"score": image.score, "scorer": image.scorer, "rank": places[image.index]}


def usage(request: GenerationRequest, images: Sequence[ImageResult]) -> dict[str, Any]:
    """Tokens that the model read, once, and drew."""
    read, drew = images[0].text_tokens, sum(image.image_tokens for image in images)
    seen = 0 if request.source is None else images[0].image_tokens
    return {
        "input_tokens": read + seen,
        "input_tokens_details": {"text_tokens": read, "image_tokens": seen},
        "output_tokens": drew,
        "output_tokens_details": {"text_tokens": 0, "image_tokens": drew},
        "total_tokens": read + seen + drew,
    }


def model(one: Standing, created: int, max_n: int) -> dict[str, Any]:
    """Spell a profile as OpenAI does a model, with what clients and people look for beside it.

    Of one that was never loaded nobody knows more than what it is called.
    """
    told = {
        "id": one.name,
        "object": "model",
        "created": created,
        "owned_by": "fluxline",
        "type": "image",
        "capabilities": ["image"],
        "architecture": {"input_modalities": ["text", "image"], "output_modalities": ["image"]},
        "supported_endpoints": ["/v1/images/generations", "/v1/images/edits"],
        "model": one.model,
        "profile": one.name,
        "state": one.state,
        "reason": one.reason or None,
        "memory_bytes": one.held_bytes,
        "max_n": max_n,
    }
    return told if one.info is None else {**told, **_known(one.info)}


def _known(info: ModelInfo) -> dict[str, Any]:
    """Spell what a model that was loaded has said of itself."""
    return {
        "family": info.family,
        "native_size": f"{info.native_width}x{info.native_height}",
        "max_size": f"{info.max_width}x{info.max_height}",
        "default_steps": info.default_steps,
        "max_steps": info.max_steps,
        "default_guidance": info.guidance,
        "default_cfg_scale": info.cfg_scale,
        "references": info.references,
        "fills": info.fills,
        "needs_picture": info.needs_picture,
        "prompt_tokens": info.text_length,
        "samplers": list(info.samplers),
        "schedules": list(info.schedules),
        "backend": info.backend,
        "ranks": info.ranks,
        "parallel": list(info.approximations),
        "dtype": info.dtype,
        "precision": info.precision,
        "notes": list(info.notes),
        "device": info.device,
    }


def _refuse_unserved(fields: Fields) -> None:
    if fields.choice("background", of=BACKGROUNDS) == "transparent":
        message = "background transparent is not served; use opaque or auto"
        raise UnsupportedParam(message, field="background")
    for name in UNSUPPORTED:
        if fields.given(name):
            raise UnsupportedParam(f"{name} is not served here; leave it out", field=name)


def _preview_every(steps: int, partials: int) -> int:
    return -(-steps // (partials + 1)) if partials else 0


def _datum(image: ImageResult, links: Mapping[str, str]) -> dict[str, Any]:
    link = links.get(image.stored or "")
    where = {"url": link} if link else {"b64_json": image.data}
    return {
        **where,
        "seed": image.seed,
        "width": image.width,
        "height": image.height,
    }


def _drawing_s(image: ImageResult) -> float:
    return sum(image.timings_s.get(stage, 0.0) for stage in MODEL_STAGES)


def _slowest(images: Sequence[ImageResult]) -> dict[str, float]:
    """Seconds of each stage. Pictures of one request are drawn together: the longest counts."""
    slowest: dict[str, float] = {}
    for image in images:
        for stage, took_s in image.timings_s.items():
            slowest[stage] = max(took_s, slowest.get(stage, 0.0))
    return slowest
