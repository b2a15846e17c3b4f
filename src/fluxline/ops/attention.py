"""Attention with one signature; torch chooses the kernel.

From torch 2.11 on, Hopper and Blackwell get cuDNN's kernel, other NVIDIA cards FlashAttention,
CPUs the vectorised flash kernel. Nothing here decides dtype or device.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(q, k, v), each (R, H, S, head_dim), to (R, S, H * head_dim). What a block is given to attend
with; a parallel group puts its own in, and the block never learns why."""


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend over the whole sequence without mask.

    q, k, v: (R, H, S, head_dim), strided as they come. Returns (R, S, H * head_dim).
    """
    out = F.scaled_dot_product_attention(q, k, v)  # (R, H, S, head_dim)
    return out.transpose(1, 2).flatten(2)
