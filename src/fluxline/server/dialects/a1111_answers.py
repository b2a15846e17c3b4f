"""What the AUTOMATIC1111 web UI's API answers: pictures, how far they are, what there is."""

import base64
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from starlette.responses import Response

from fluxline.errors import FluxlineError
from fluxline.images import SAMPLER_TITLES, Recipe
from fluxline.loras import LoraInfo
from fluxline.request import ImageResult
from fluxline.server import envelope
from fluxline.server.dialects.a1111 import Asked


def answer(asked: Asked, images: Sequence[ImageResult], parameters: dict[str, Any]) -> bytes:
    """Spell finished pictures; `parameters`: what was sent, which clients get back."""
    told = {
        "images": [base64.b64encode(image.data).decode() for image in images],
        "parameters": parameters,
        "info": json.dumps(_info(asked, images)),
    }
    return json.dumps(told).encode()


def progress(
    done: int, total: int, preview: bytes | None, *, jobs: int, number: int, eta_s: float
) -> dict[str, Any]:
    """Spell how far the caller's pictures are. total 0: nothing is drawn."""
    return {
        "progress": round(done / total, 4) if total else 0.0,
        "eta_relative": round(eta_s, 1),
        "state": {
            "skipped": False,
            "interrupted": False,
            "stopping_generation": False,
            "job": "txt2img" if total else "",
            "job_count": jobs,
            "job_timestamp": datetime.now(UTC).strftime("%Y%m%d%H%M%S"),
            "job_no": number,
            "sampling_step": done,
            "sampling_steps": total,
        },
        "current_image": None if preview is None else base64.b64encode(preview).decode(),
        "textinfo": None,
        "current_task": "txt2img" if total else None,
    }


def model(name: str) -> dict[str, Any]:
    """Spell a profile as that program does a checkpoint."""
    return {
        "title": name,
        "model_name": name,
        "hash": None,
        "sha256": None,
        "filename": name,
        "config": None,
    }


def lora(info: LoraInfo) -> dict[str, Any]:
    """Spell a LoRA; where its file lies is nobody's business."""
    words = ", ".join(info.trigger_words)
    return {
        "name": info.name,
        "alias": info.name,
        "path": f"{info.name}.safetensors",
        "metadata": {"activation text": words} if words else {},
    }


def refusal(error: FluxlineError) -> Response:
    """Answer in that program's form, with our `error` object in place of its name."""
    status, told = envelope.spelt(error)
    status = 422 if status == 400 else status
    body = {
        "error": type(error).__name__,
        "detail": told["message"],
        "body": "",
        "errors": told["message"],
    }
    raw = json.dumps(body).encode()
    return Response(raw, status, envelope.hints(error), media_type="application/json")


def _info(asked: Asked, images: Sequence[ImageResult]) -> dict[str, Any]:
    request, seeds = asked.request, [image.seed for image in images]
    params = images[0].params if images else request.params
    said = dict.fromkeys((*asked.warnings, *(line for image in images for line in image.warnings)))
    return {
        "prompt": request.prompt,
        "all_prompts": [request.prompt for _ in images],
        "negative_prompt": params.negative_prompt,
        "all_negative_prompts": [params.negative_prompt for _ in images],
        "seed": request.seed,
        "all_seeds": seeds,
        "subseed": 0,
        "all_subseeds": [0 for _ in images],
        "subseed_strength": 0,
        "width": params.width,
        "height": params.height,
        "sampler_name": SAMPLER_TITLES[params.sampler],
        "cfg_scale": params.guidance if params.guidance is not None else params.cfg_scale,
        "steps": params.steps,
        "batch_size": asked.batch_size,
        "restore_faces": False,
        "sd_model_name": request.model,
        "sd_model_hash": None,
        "backend": images[0].backend if images else None,
        "infotexts": [infotext(request.prompt, image) for image in images],
        "job_timestamp": datetime.now(UTC).strftime("%Y%m%d%H%M%S"),
        "is_using_inpainting_conditioning": False,
        "version": "fluxline",
        "warnings": list(said),
    }


def infotext(prompt: str, image: ImageResult) -> str:
    """The text that other programs read beside a picture."""
    recipe = Recipe(
        prompt=prompt, seed=image.seed, model=image.model, params=image.params, software="fluxline"
    )
    return recipe.to_infotext()
