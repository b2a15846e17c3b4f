"""Attention with one signature; torch chooses the kernel.

From torch 2.11 on, Hopper and Blackwell get cuDNN's kernel, other NVIDIA cards FlashAttention,
CPUs the vectorised flash kernel. Nothing here decides dtype or device.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Partly = tuple[Tensor, Tensor]
"""What some of the keys gave: (R, H, S, head_dim) float32, and (R, H, S) float32, the log of the
sum of exponentials it was divided by."""

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(q, k, v), each (R, H, S, head_dim), to (R, S, H * head_dim). What a block is given to attend
with; a parallel group puts its own in, and the block never learns why."""


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend over the whole sequence without mask.

    q, k, v: (R, H, S, head_dim), strided as they come. Returns (R, S, H * head_dim).
    """
    return attend_by_head(q, k, v).transpose(1, 2).flatten(2)


def attend_by_head(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same, its heads left apart: (R, H, S, head_dim)."""
    return F.scaled_dot_product_attention(q, k, v)


def attend_partly(q: Tensor, k: Tensor, v: Tensor) -> Partly:
    """Attend to some of the keys, so that others may be merged with it.

    q: (R, H, S, head_dim). k, v: (R, H, K, head_dim); K may be 0.
    """
    if not k.shape[2] or not q.numel():
        return q.new_zeros(q.shape, dtype=torch.float32), q.new_full(
            q.shape[:3], -torch.inf, dtype=torch.float32
        )
    if q.device.type == "cpu":
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
    elif q.device.type == "cuda" and q.dtype != torch.float32:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[:2]
    elif q.device.type == "cuda":
        out, lse = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, True)[:2]
        lse = lse[..., : q.shape[2]]  # the kernel rounds its length up
    else:
        logits = (q.float() @ k.float().mT) * q.shape[-1] ** -0.5
        lse = logits.logsumexp(-1)
        out = (logits - lse[..., None]).exp() @ v.float()
    return out.float(), lse.float()


def merged(one: Partly, other: Partly) -> Partly:
    """What two disjoint sets of keys give together.

    Source: Liu et al. 2023, Ring Attention (arXiv:2310.01889).
    """
    lse = torch.logaddexp(one[1], other[1])

    def weighed(part: Partly) -> Tensor:
        weight = (part[1] - lse).exp().nan_to_num(0.0)  # NaN: neither has seen a key
        return part[0] * weight[..., None]

    return weighed(one) + weighed(other), lse
