"""Rotary position embedding over several axes.

Source: Su et al. 2021, "RoFormer"; the axes as in black-forest-labs/flux, math.py. Neighbouring
channels form a pair, and a pair is a complex number: to rotate is to multiply.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def rope_table(ids: Tensor, axes: Sequence[int], theta: float = 10_000.0) -> Tensor:
    """Unit complex numbers by which each position turns each channel pair.

    ids: (..., S, len(axes)) positions. axes: channels of the head given to each axis, each even.
    Returns (..., S, sum(axes) / 2) complex64. Angles are computed in float64.
    """
    angles = [
        ids[..., i, None].double()
        * theta ** (-torch.arange(0, dim, 2, dtype=torch.float64, device=ids.device) / dim)
        for i, dim in enumerate(axes)
    ]
    angle = torch.cat(angles, dim=-1)
    return torch.polar(torch.ones_like(angle), angle).to(torch.complex64)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn every channel pair of x by its position.

    x: (R, S, ..., head_dim). table: (R or 1, S, head_dim / 2), spread over the axes between.
    Computed in float32, returned in x's dtype.
    """
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], x.shape[-1] // 2, 2))
    between = (1,) * (pairs.dim() - 3)
    turned = pairs * table.reshape(*table.shape[:2], *between, table.shape[-1])
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)
