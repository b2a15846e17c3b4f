"""The oracle: each family's pipeline of diffusers, on the same weights and a scheduler of its own.

Where a family comes with a scheduler that no sampler of ours is, the pipeline gets the one that
`euler` stands for.
"""

import io
import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from diffusers import EulerDiscreteScheduler
from PIL import Image

from fluxline.engine import Engine
from fluxline.engine.scheduler import Budget

BUDGET = Budget(batch_tokens=8192, resident_tokens=65536)


@dataclass(frozen=True)
class Oracle:
    """How a family's pipeline is asked for what ours is asked for."""

    sampler: str = "euler"  # ours
    scheduler: Any = None  # theirs; None: the one that the model comes with
    always: dict[str, Any] = field(default_factory=dict)
    scale: str = "guidance_scale"  # how it calls cfg_scale
    offset: float = 0.0  # its scale less ours


ORACLES = {
    "sd": Oracle(scheduler=EulerDiscreteScheduler),
    "sd-v": Oracle(scheduler=EulerDiscreteScheduler),
    "sdxl": Oracle(),
    "sd3": Oracle(),
    "hunyuan-dit": Oracle(
        scheduler=EulerDiscreteScheduler, always={"use_resolution_binning": False}
    ),
    "hunyuan-image": Oracle(scale=""),
    "hunyuan-image-distilled": Oracle(scale=""),
    "qwen-image": Oracle(scale="true_cfg_scale"),
    "aura-flow": Oracle(),
    "pixart-sigma": Oracle(
        sampler="dpmpp_2m", always={"use_resolution_binning": False, "clean_caption": False}
    ),
    "z-image": Oracle(offset=-1.0),
    "sana": Oracle(sampler="dpmpp_2m", always={"use_resolution_binning": False}),
}


def theirs(model, scheduler=None, kind=None, **options):
    """A pipeline of diffusers on a model's own parts. options: of its scheduler."""
    pipe = model.family.pipe
    own = pipe.scheduler
    parts = pipe.components
    parts["scheduler"] = (scheduler or type(own)).from_config(own.config, **options)
    if "safety_checker" in parts:
        parts["requires_safety_checker"] = False
    made = (kind or type(pipe))(**parts)
    made.set_progress_bar_config(disable=True)
    return made


def draw_theirs(pipe, *, seed, **asked) -> np.ndarray:
    generator = torch.Generator("cpu").manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # their schedulers' way with numpy
        picture = pipe(generator=generator, output_type="np", **asked).images[0]
    return (picture * 255).round().astype(np.uint8)


def draw_ours(model, prompt, **asked) -> np.ndarray:
    with Engine(model, budget=BUDGET, threads=1) as engine:
        (image,) = engine.generate(prompt, **asked)
    return pixels_of(image)


def pixels_of(image) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(image.data)))
