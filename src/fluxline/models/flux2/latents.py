"""Latents of FLUX.2 as the transformer sees them: 2 x 2 patches as tokens, and their positions.

Source: black-forest-labs/flux2, sampling.py. A picture of height x width px is a latent of
(32, 2h, 2w) with h = height / 16; the transformer reads it as N = h * w tokens of 128 channels,
each channel brought to mean 0 and variance 1 by statistics that the VAE keeps.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

PATCH = 2
TIME_STEP = 10  # between two reference pictures on the axis of time; what is drawn is at 0


@dataclass(frozen=True, slots=True)
class Statistics:
    """Of tokens as the VAE makes them. mean, deviation: (C,) float32."""

    mean: Tensor
    deviation: Tensor

    def normed(self, tokens: Tensor) -> Tensor:
        """Tokens (..., C) as the transformer reads them."""
        return (tokens - self.mean) / self.deviation

    def restored(self, tokens: Tensor) -> Tensor:
        """Tokens (..., C) as the VAE reads them."""
        return tokens * self.deviation + self.mean


def pack(latent: Tensor) -> Tensor:
    """(R, c, 2h, 2w) to tokens (R, N, C), row by row; C = 4 c."""
    return rearrange(latent, "r c (h p) (w q) -> r (h w) (c p q)", p=PATCH, q=PATCH)


def unpack(tokens: Tensor, h: int, w: int) -> Tensor:
    """Tokens (R, N, C) back to latents (R, c, 2h, 2w)."""
    return rearrange(tokens, "r (h w) (c p q) -> r c (h p) (w q)", h=h, w=w, p=PATCH, q=PATCH)


def text_ids(length: int) -> Tensor:
    """Positions (L, 4) of the text tokens: one after another on the last axis."""
    ids = torch.zeros(length, 4)
    ids[:, 3] = torch.arange(length)
    return ids


def image_ids(h: int, w: int, time: int = 0) -> Tensor:
    """Positions (N, 4) of h x w tokens at that time: time, row, column, 0."""
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    zeros = torch.zeros_like(rows)
    return torch.stack((zeros + time, rows, columns, zeros), dim=-1).reshape(-1, 4).float()


def reference_ids(sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Positions (T, 4) of reference pictures of h x w tokens, each later than the one before."""
    times = range(TIME_STEP, TIME_STEP * (len(sizes) + 1), TIME_STEP)
    return torch.cat([image_ids(h, w, time) for (h, w), time in zip(sizes, times, strict=True)])
