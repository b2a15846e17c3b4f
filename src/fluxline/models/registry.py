"""Models by name: where each lies and which family opens it. Families are imported when asked."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from fluxline.errors import ConfigError, LoadError
from fluxline.models.base import Checkpoint, DiffusionModel, Part, Precision, Share

CheckpointAt = Callable[[Path], Checkpoint]
Opener = Callable[..., DiffusionModel[Any]]


@dataclass(frozen=True, slots=True)
class Entry:
    """A model with a name. source, beside, scorer: what `weights.locate` understands.

    family: None until the files are there; then `family_of` reads it off them.
    """

    family: str | None
    source: str
    is_asset: bool = False  # lies in the package
    beside: str | None = None  # parts of it that come by themselves
    scorer: str | None = None  # a CLIP that knows what the model draws


_ASSETS = files("fluxline") / "assets"

MODELS: dict[str, Entry] = {
    "mini": Entry(
        "flux1", str(_ASSETS / "mini"), is_asset=True, scorer=str(_ASSETS / "mini-scorer")
    ),
    "flux1-schnell": Entry("flux1", "black-forest-labs/FLUX.1-schnell"),
    "flux1-dev": Entry("flux1", "black-forest-labs/FLUX.1-dev"),
    "flux1-krea-dev": Entry("flux1", "black-forest-labs/FLUX.1-Krea-dev"),
    "flux1-kontext-dev": Entry("flux1", "black-forest-labs/FLUX.1-Kontext-dev"),
    "flux1-fill-dev": Entry("flux1", "black-forest-labs/FLUX.1-Fill-dev"),
    "flux1-depth-dev": Entry("flux1", "black-forest-labs/FLUX.1-Depth-dev"),
    "flux1-canny-dev": Entry("flux1", "black-forest-labs/FLUX.1-Canny-dev"),
    "flux1-redux-dev": Entry(
        "flux1", "black-forest-labs/FLUX.1-dev", beside="black-forest-labs/FLUX.1-Redux-dev"
    ),
    "flux2-klein-4b": Entry("flux2", "black-forest-labs/FLUX.2-klein-4B"),
    "flux2-klein-9b": Entry("flux2", "black-forest-labs/FLUX.2-klein-9B"),
    "flux2-klein-9b-kv": Entry("flux2", "black-forest-labs/FLUX.2-klein-9b-kv"),
    "flux2-klein-base-4b": Entry("flux2", "black-forest-labs/FLUX.2-klein-base-4B"),
    "flux2-klein-base-9b": Entry("flux2", "black-forest-labs/FLUX.2-klein-base-9B"),
    "flux2-dev": Entry("flux2", "black-forest-labs/FLUX.2-dev"),
    "sd15": Entry("sd", "stable-diffusion-v1-5/stable-diffusion-v1-5"),
    "sdxl": Entry("sdxl", "stabilityai/stable-diffusion-xl-base-1.0"),
    "sd35-medium": Entry("sd3", "stabilityai/stable-diffusion-3.5-medium"),
    "sd35-large": Entry("sd3", "stabilityai/stable-diffusion-3.5-large"),
    "hunyuan-dit": Entry("hunyuan-dit", "Tencent-Hunyuan/HunyuanDiT-v1.2-Diffusers"),
    "hunyuan-image": Entry("hunyuan-image", "hunyuanvideo-community/HunyuanImage-2.1-Diffusers"),
    "qwen-image": Entry("qwen-image", "Qwen/Qwen-Image"),
    "z-image-turbo": Entry("z-image", "Tongyi-MAI/Z-Image-Turbo"),
    "sana": Entry("sana", "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers"),
    "aura-flow": Entry("aura-flow", "fal/AuraFlow-v0.3"),
    "pixart-sigma": Entry("pixart-sigma", "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS"),
}
FAMILIES = {
    "flux1": "fluxline.models.flux1.load",
    "flux2": "fluxline.models.flux2.load",
    "sd": "fluxline.models.adapted.load",
    "sdxl": "fluxline.models.adapted.load",
    "sd3": "fluxline.models.adapted.load",
    "hunyuan-dit": "fluxline.models.adapted.load",
    "hunyuan-image": "fluxline.models.adapted.load",
    "qwen-image": "fluxline.models.adapted.load",
    "z-image": "fluxline.models.adapted.load",
    "sana": "fluxline.models.adapted.load",
    "aura-flow": "fluxline.models.adapted.load",
    "pixart-sigma": "fluxline.models.adapted.load",
}
FAMILY_OF_CLASS = {
    "FluxPipeline": "flux1",
    "FluxImg2ImgPipeline": "flux1",
    "FluxInpaintPipeline": "flux1",
    "FluxKontextPipeline": "flux1",
    "FluxKontextInpaintPipeline": "flux1",
    "FluxFillPipeline": "flux1",
    "FluxControlPipeline": "flux1",
    "FluxPriorReduxPipeline": "flux1",
    "FluxTransformer2DModel": "flux1",
    "Flux2Pipeline": "flux2",
    "Flux2KleinPipeline": "flux2",
    "Flux2KleinInpaintPipeline": "flux2",
    "Flux2KleinKVPipeline": "flux2",
    "Flux2Transformer2DModel": "flux2",
    "StableDiffusionPipeline": "sd",
    "StableDiffusionImg2ImgPipeline": "sd",
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusionXLImg2ImgPipeline": "sdxl",
    "StableDiffusion3Pipeline": "sd3",
    "StableDiffusion3Img2ImgPipeline": "sd3",
    "HunyuanDiTPipeline": "hunyuan-dit",
    "HunyuanImagePipeline": "hunyuan-image",
    "QwenImagePipeline": "qwen-image",
    "QwenImageImg2ImgPipeline": "qwen-image",
    "ZImagePipeline": "z-image",
    "ZImageImg2ImgPipeline": "z-image",
    "SanaPipeline": "sana",
    "AuraFlowPipeline": "aura-flow",
    "PixArtSigmaPipeline": "pixart-sigma",
}
"""diffusers' pipelines and networks, by the names that its configurations give them."""
QUANTIZED = {"flux1", "flux2"}
"""Families that say which of their layers may be held in fewer bits."""
SHARED = {"flux1", "flux2"}
"""Families that say where their networks may be cut for ranks that hold them together."""


def entry_for(model: str) -> Entry:
    """The entry of that name, or one made of a path or hub id, whose files say the family."""
    return MODELS.get(model, Entry(None, model))


def family_of(path: Path) -> str:
    """The family of a model's folder, or of a single file in one. Raises LoadError.

    What model_index.json says counts first, then what the transformer says of itself.
    """
    folder = path if path.is_dir() else path.parent
    indices = (folder / "model_index.json", folder / "transformer" / "config.json")
    said = [name for name in map(_class_name, indices) if name is not None]
    for name in said:
        if name in FAMILY_OF_CLASS:
            return FAMILY_OF_CLASS[name]
    if said:
        message = f"{path.name} is of a family that is not known here ({', '.join(said)})"
    else:
        message = (
            f"cannot tell what {path.name} is: neither model_index.json nor "
            "transformer/config.json lies in its folder and names a class of diffusers"
        )
    raise LoadError(message)


def open_family(
    family: str,
    path: Path,
    *,
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    checkpoint_at: CheckpointAt,
    precision: Precision,
    share: Share | None = None,
    beside: Path | None = None,
) -> DiffusionModel[Any]:
    """Open a model with its family's `load`, which knows of parts beside it if there are any.

    share: what of its network is opened; None: all. Raises LoadError.
    """
    if family not in FAMILIES:
        raise ConfigError(f"no model family {family!r}; there is {', '.join(FAMILIES)}")
    load: Opener = import_module(FAMILIES[family]).load
    options: dict[str, Any] = {"precision": precision} if family in QUANTIZED else {}
    if precision.is_kind and not options:
        raise ConfigError(f"models of the family {family} cannot be quantized yet: use auto")
    if beside is not None:
        options["beside"] = beside
    if share is not None:
        if family not in SHARED:
            message = f"models of the family {family} cannot be cut by weights: their networks are"
            raise ConfigError(
                f"{message} diffusers' own; use cfg or data in place of tensor or stages"
            )
        options["share"] = share
    return load(path, name=name, device=device, dtype=dtype, checkpoint_at=checkpoint_at, **options)


def parts_of(family: str, path: Path, checkpoint_at: CheckpointAt) -> tuple[Part, ...]:
    """The parts of a model whose layers may be held in fewer bits. Raises LoadError."""
    if family not in QUANTIZED:
        raise ConfigError(f"models of the family {family} cannot be quantized yet")
    parts: tuple[Part, ...] = import_module(FAMILIES[family]).parts(path, checkpoint_at)
    return parts


def _class_name(config: Path) -> str | None:
    """The class that a configuration of diffusers names; None if it is not there or names none."""
    try:
        name = json.loads(config.read_text("utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return name if isinstance(name, str) else None
