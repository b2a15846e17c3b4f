"""Redux: what a picture shows, as tokens that a FLUX.1 reads after its prompt's.

A SigLIP sees the picture, two layers translate. Source: black-forest-labs/flux,
modules/image_embedders.py.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fluxline.models.base import Network


class Projection(nn.Module):
    """From what SigLIP sees to what T5 would say."""

    def __init__(self, seen_dim: int, text_dim: int) -> None:
        super().__init__()
        self.redux_up = nn.Linear(seen_dim, 3 * text_dim)
        self.redux_down = nn.Linear(3 * text_dim, text_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(P, T, seen_dim) to (P, T, text_dim)."""
        projected: Tensor = self.redux_down(F.silu(self.redux_up(x)))
        return projected


class Redux:
    """Thread: the engine's."""

    def __init__(self, *, siglip: nn.Module, eye: Any, projection: Projection) -> None:
        self._siglip, self._eye, self._projection = siglip, eye, projection
        self.device = projection.redux_up.weight.device  # where it computes
        config: Any = siglip.config
        self.tokens: int = (config.image_size // config.patch_size) ** 2
        """T, of one picture."""

    def networks(self) -> tuple[Network, ...]:
        """What sees, and what translates."""
        return tuple(Network(part, (part,)) for part in (self._siglip, self._projection))

    @torch.inference_mode()
    def read(self, pictures: Sequence[Tensor]) -> Tensor:
        """Text tokens (P T, text_dim) of pictures uint8 (h, w, 3) of any size."""
        shown = self._eye(
            [picture.numpy() for picture in pictures],
            input_data_format="channels_last",
            return_tensors="pt",
        )
        dtype = self._projection.redux_up.weight.dtype
        pixels = shown["pixel_values"].to(self.device, dtype)
        seen = self._siglip(pixel_values=pixels).last_hidden_state  # (P, T, seen_dim)
        text: Tensor = self._projection(seen)
        return text.flatten(0, 1)
