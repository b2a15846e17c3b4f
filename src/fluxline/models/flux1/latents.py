"""Latents of FLUX.1 as the transformer sees them: 2 x 2 patches as tokens, and their positions.

Source: black-forest-labs/flux, sampling.py. A picture of height x width px is a latent of
(16, h, w) with h = height / 8; the transformer reads it as N = h/2 * w/2 tokens of 64 channels.
"""

import torch
from einops import rearrange
from torch import Tensor

PATCH = 2


def pack(latent: Tensor) -> Tensor:
    """(R, c, h, w) to tokens (R, N, C), row by row; C = 4 c."""
    return rearrange(latent, "r c (h p) (w q) -> r (h w) (c p q)", p=PATCH, q=PATCH)


def unpack(tokens: Tensor, h: int, w: int) -> Tensor:
    """Tokens (R, N, C) back to latents (R, c, h, w)."""
    return rearrange(tokens, "r (h w) (c p q) -> r c (h p) (w q)", h=h // PATCH, p=PATCH, q=PATCH)


def fold(mask: Tensor, scale: int) -> Tensor:
    """A mask (height, width) as tokens (N, 4 * scale * scale) that keep every pixel of it.

    scale: pixels of a latent position's side. Source: sampling.py, prepare_fill.
    """
    patches = rearrange(mask, "(h p) (w q) -> 1 (p q) h w", p=scale, q=scale)
    return pack(patches)[0]


def image_ids(h: int, w: int, picture: int = 0) -> Tensor:
    """Positions (N, 3) of the tokens of a latent h x w: which picture, row, column.

    picture: 0 is the one that is drawn, 1 one that is looked at.
    """
    rows, columns = torch.meshgrid(
        torch.arange(h // PATCH), torch.arange(w // PATCH), indexing="ij"
    )
    which = torch.full_like(rows, picture)
    return torch.stack((which, rows, columns), dim=-1).reshape(-1, 3).float()


def text_ids(length: int) -> Tensor:
    """Positions (L, 3) of the text tokens: all of them stand at the origin."""
    return torch.zeros(length, 3)
