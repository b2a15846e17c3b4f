"""Models by name: where each lies and which family opens it. Families are imported when asked."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from fluxline.errors import ConfigError
from fluxline.models.base import Checkpoint, DiffusionModel, Precision

CheckpointAt = Callable[[Path], Checkpoint]
Opener = Callable[..., DiffusionModel[Any]]


@dataclass(frozen=True, slots=True)
class Entry:
    """A model with a name. source, scorer: what `weights.locate` understands."""

    family: str
    source: str
    is_asset: bool = False  # lies in the package
    scorer: str | None = None  # a CLIP that knows what the model draws


_ASSETS = files("fluxline") / "assets"

MODELS: dict[str, Entry] = {
    "mini": Entry(
        "flux1", str(_ASSETS / "mini"), is_asset=True, scorer=str(_ASSETS / "mini-scorer")
    ),
    "flux1-schnell": Entry("flux1", "black-forest-labs/FLUX.1-schnell"),
    "flux1-dev": Entry("flux1", "black-forest-labs/FLUX.1-dev"),
    "flux1-krea-dev": Entry("flux1", "black-forest-labs/FLUX.1-Krea-dev"),
}
FAMILIES = {"flux1": "fluxline.models.flux1.load"}
QUANTIZED = {"flux1"}
"""Families that say which of their layers may be held in fewer bits."""


def entry_for(model: str) -> Entry:
    """The entry of that name, or one made of a path or hub id, which is then FLUX.1."""
    return MODELS.get(model, Entry("flux1", model))


def open_family(
    family: str,
    path: Path,
    *,
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    checkpoint_at: CheckpointAt,
    precision: Precision,
) -> DiffusionModel[Any]:
    """Open a model with its family's `load`. Raises LoadError."""
    if family not in FAMILIES:
        raise ConfigError(f"no model family {family!r}; there is {', '.join(FAMILIES)}")
    load: Opener = import_module(FAMILIES[family]).load
    options = {"precision": precision} if family in QUANTIZED else {}
    if precision.is_kind and not options:
        raise ConfigError(f"models of the family {family} cannot be quantized yet: use auto")
    return load(path, name=name, device=device, dtype=dtype, checkpoint_at=checkpoint_at, **options)
