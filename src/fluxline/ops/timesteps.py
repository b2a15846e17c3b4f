"""Numbers as vectors of waves, the form in which a network reads a noise level."""

import math

import torch
from torch import Tensor


def timestep_features(value: Tensor) -> Tensor:
    """Sinusoidal features (E, 256) float32 of value (E,), which is scaled by 1000 first.

    Source: black-forest-labs/flux, layers.py, timestep_embedding: cosines, then sines.
    """
    half = 128
    frequencies = torch.exp(
        -math.log(10_000) * torch.arange(half, dtype=torch.float32, device=value.device) / half
    )
    angle = 1000.0 * value.float()[:, None] * frequencies
    return torch.cat((angle.cos(), angle.sin()), dim=-1)
