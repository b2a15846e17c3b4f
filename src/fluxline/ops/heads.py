"""Attention by heads, as every FLUX does it: split, norm, rotate, attend."""

from einops import rearrange
from torch import Tensor

from fluxline.ops.attention import Attend
from fluxline.ops.norm import rms_norm
from fluxline.ops.rope import rotate


def split_heads(qkv: Tensor, heads: int, qk_norm: Tensor) -> tuple[Tensor, Tensor]:
    """Split (R, S, 3 D) by head and norm queries and keys: (R, S, 2, H, head_dim), (R, S, H, ·)."""
    split = rearrange(qkv, "r s (three h c) -> r s three h c", three=3, h=heads)
    return rms_norm(split[:, :, :2], qk_norm[:, None]), split[:, :, 2]


def attend_rotated(qk: Tensor, v: Tensor, rope: Tensor, attend: Attend) -> Tensor:
    """Rotate queries and keys (R, S, 2, H, head_dim) by position and attend: (R, S, D)."""
    q, k = rearrange(rotate(qk, rope), "r s two h c -> two r h s c")
    return attend(q, k, v.transpose(1, 2))
