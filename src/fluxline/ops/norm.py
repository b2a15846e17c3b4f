"""Normalisation and modulation, the two always together in a diffusion transformer.

Source: Peebles and Xie 2022, "Scalable Diffusion Models with Transformers" (adaLN-Zero).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-6


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm without weights, then (1 + scale) * x + shift.

    x: (R, S, D). shift, scale: (R, 1, D).
    """
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=EPS), 1 + scale)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """Divide by the root mean square of the last axis, then weigh. Computed in float32.

    x: (..., D). weight: (D,) or anything that broadcasts against x.
    """
    wide = x.float()
    inverse = wide.square().mean(-1, keepdim=True).add_(EPS).rsqrt_()
    return (wide * inverse).to(x.dtype) * weight
