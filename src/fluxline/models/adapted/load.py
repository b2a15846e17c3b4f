"""Open a model of another family from its folder in diffusers' layout.

diffusers puts its parts together; nothing is fetched, no pickle is read, no code of the
repository runs. A model may say more of itself in a `fluxline.json`: sizes, steps, guidance.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from fluxline.errors import LoadError
from fluxline.models.adapted.aura_flow import AuraFlow
from fluxline.models.adapted.family import Family
from fluxline.models.adapted.hunyuan import HunyuanDiT, HunyuanImage
from fluxline.models.adapted.model import AdaptedModel
from fluxline.models.adapted.pixart import PixArtSigma
from fluxline.models.adapted.qwen_image import QwenImage
from fluxline.models.adapted.sana import Sana
from fluxline.models.adapted.stable_diffusion import (
    StableDiffusion,
    StableDiffusion3,
    StableDiffusionXL,
)
from fluxline.models.adapted.vae import Vae
from fluxline.models.adapted.z_image import ZImage
from fluxline.models.base import Checkpoint
from fluxline.models.folder import fingerprint_of, read_json, said_of_itself
from fluxline.models.spec import DynamicShift, ModelSpec

PRECISIONS = ("fp16", "bf16")
FAMILIES: tuple[type[Family], ...] = (
    StableDiffusion,
    StableDiffusionXL,
    StableDiffusion3,
    HunyuanDiT,
    HunyuanImage,
    QwenImage,
    ZImage,
    Sana,
    AuraFlow,
    PixArtSigma,
)


def load(
    path: Path,
    *,
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    checkpoint_at: Callable[[Path], Checkpoint],
) -> AdaptedModel:
    """Open the model in the folder `path`. Raises LoadError: it is none, or a part is wrong."""
    if not path.is_dir():
        raise LoadError(f"{name} must be a folder in diffusers' layout; got a file")
    about = said_of_itself(path)
    kind = _family_of(read_json(path / "model_index.json"), name)
    family = kind(_pipeline(path, kind, device, dtype))
    vae = Vae(family.pipe.vae)
    _check_channels(name, family, vae)
    weights = _fingerprint(path, family.pipe, checkpoint_at)
    return AdaptedModel(_spec(name, family, vae, about), family=family, vae=vae, weights=weights)


def _family_of(index: Mapping[str, Any], name: str) -> type[Family]:
    said = index.get("_class_name")
    for family in FAMILIES:
        if said in family.pipelines:
            return family
    raise LoadError(f"{name} is a {said}, which no family here draws with")


def _pipeline(path: Path, family: type[Family], device: torch.device, dtype: torch.dtype) -> Any:
    """The parts, as diffusers puts them together; in eval, without gradients."""
    transformers_logging.disable_progress_bar()
    diffusers_logging.disable_progress_bar()
    options: dict[str, Any] = dict.fromkeys(family.unused)
    if "safety_checker" in options:
        options["requires_safety_checker"] = False
    kind = getattr(diffusers, family.pipelines[0])
    try:
        pipe = kind.from_pretrained(
            path,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            variant=_variant(path),
            **options,
        )
    except Exception as exc:  # diffusers and transformers raise what they like
        raise LoadError(f"{path.name} cannot be read ({type(exc).__name__}: {exc})") from exc
    pipe.to(device)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    return pipe


def _variant(path: Path) -> str | None:
    """The word in the names of the network's files, where there are none without one."""
    network = path / "unet" if (path / "unet").is_dir() else path / "transformer"
    names = [file.name for file in network.glob("*.safetensors")]
    said = [variant for name in names for variant in PRECISIONS if f".{variant}." in name]
    return said[0] if len(said) == len(names) > 0 else None


def _check_channels(name: str, family: Family, vae: Vae) -> None:
    """Refuse a network that reads more than the picture it draws, as those for inpainting do."""
    read = family.network.config.in_channels
    if read not in (vae.channels, vae.channels * family.patch**2):
        message = f"{name} reads {read} channels where a picture has {vae.channels}"
        raise LoadError(f"{message}: models for inpainting or control are not served")


def _spec(name: str, family: Family, vae: Vae, about: Mapping[str, Any]) -> ModelSpec:
    """What the model says of itself; else what its family does."""
    width, height = about.get("native_size", family.native_size(vae.scale))
    sizes = about.get("trained_sizes", family.trained_sizes())
    config = family.pipe.scheduler.config
    return ModelSpec(
        name=name,
        family=family.name,
        backend="diffusers",
        native_size=(width, height),
        grid=vae.scale * family.patch,
        trained_sizes=tuple((w, h) for w, h in sizes),
        max_side=max(2048, 2 * width, 2 * height, *(side for size in sizes for side in size)),
        default_steps=about.get("default_steps", family.default_steps),
        max_steps=about.get("max_steps", 100),
        text_length=family.text_length,
        guidance=family.distilled_guidance(),
        cfg_scale=about.get("cfg_scale", family.cfg_scale),
        shift=_shift(config),
        levels=family.levels,
        terminal=config.get("shift_terminal"),
        steering=family.steer,
    )


def _shift(config: Mapping[str, Any]) -> float | DynamicShift:
    if config.get("use_dynamic_shifting"):
        names = DynamicShift.__dataclass_fields__
        return DynamicShift(**{key: config[key] for key in names if config.get(key) is not None})
    return float(config.get("flow_shift") or config.get("shift") or 1.0)


def _fingerprint(path: Path, pipe: Any, checkpoint_at: Callable[[Path], Checkpoint]) -> str:
    """Of the parts that draw, not of whatever else lies in the folder."""
    learned = [name for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)]
    return fingerprint_of(*(checkpoint_at(path / part) for part in sorted(learned)))
