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
from fluxline.models.base import Checkpoint, DiffusionModel

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
}
FAMILIES = {"flux1": "fluxline.models.flux1.load", "flux2": "fluxline.models.flux2.load"}
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
}
"""diffusers' pipelines and networks, by the names that its configurations give them."""


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
    beside: Path | None = None,
) -> DiffusionModel[Any]:
    """Open a model with its family's `load`, which knows of parts beside it if there are any.

    Raises LoadError.
    """
    if family not in FAMILIES:
        raise ConfigError(f"no model family {family!r}; there is {', '.join(FAMILIES)}")
    load: Opener = import_module(FAMILIES[family]).load
    more = {} if beside is None else {"beside": beside}
    return load(path, name=name, device=device, dtype=dtype, checkpoint_at=checkpoint_at, **more)


def _class_name(config: Path) -> str | None:
    """The class that a configuration of diffusers names; None if it is not there or names none."""
    try:
        name = json.loads(config.read_text("utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return name if isinstance(name, str) else None
