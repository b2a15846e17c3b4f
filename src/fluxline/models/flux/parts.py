"""Parts of a FLUX as both kinds open them: the transformer, the VAE, and how both are held."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from fluxline.models.base import Checkpoint, Held, Part, Precision, Share
from fluxline.models.folder import reading
from fluxline.models.spec import ModelSpec

Network = TypeVar("Network", bound=nn.Module)


def folder_of(path: Path) -> Path:
    """The folder that a model lies in, itself or as a single file."""
    return path if path.is_dir() else path.parent


def checkpoint_of(
    folder: Path, part: str, checkpoint_at: Callable[[Path], Checkpoint]
) -> Checkpoint:
    """The tensors of a part. Raises LoadError naming it."""
    with reading(part):
        return checkpoint_at(folder / part)


def fill_share(
    network: Network, part: Part, device: torch.device, precision: Precision, share: Share
) -> tuple[Network, Held]:
    """Fill this rank's share of a network, which stands on the meta device, for drawing alone."""
    part = share(network, part)
    held = precision.place(network, part, device)
    network.to_empty(device=device)
    part.checkpoint.fill(network, part.layout)
    return network.eval().requires_grad_(False), held


def vae_of(
    kind: Any,  # diffusers is untyped, and so is what it opens
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
) -> Any:
    """The VAE of a folder. kind: its class, of diffusers. Raises LoadError."""
    with reading("vae"):
        vae = kind.from_pretrained(
            folder,
            subfolder="vae",
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            low_cpu_mem_usage=False,
        )
    return vae.to(device, memory_format=torch.channels_last).eval()


def note_held(spec: ModelSpec, transformer: Held, text: Held, of_text: Part) -> ModelSpec:
    """Say of a model how its transformer and its text encoder are held."""
    notes = (*transformer.notes, *text.told_beside(transformer, of_text.name))
    return replace(spec, precision=transformer.precision, notes=notes)
