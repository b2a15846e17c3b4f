"""What only a card computes, by what it stands for: the contracts that CUDA's kernels state are
asked of what they are given, and the numbers are a CPU's."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fluxline.linear.fp4 import E2M1, swizzled
from fluxline.linear.kind import blocks, looked_up

aten = torch.ops.aten


def scaled_mm(a: Tensor, b: Tensor, *, scale_a: Tensor, scale_b: Tensor, **more: Any) -> Tensor:
    """torch's own check of layouts, multiples, dtypes and scales, on tensors that are not there."""
    given = (a, b, scale_a, scale_b)
    with FakeTensorMode():
        fake = [
            torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cuda") for t in given
        ]
        torch._scaled_mm(*fake[:2], scale_a=fake[2], scale_b=fake[3], **more)
    if a.dtype == torch.float8_e4m3fn:
        return ((a.float() @ b.float()) * scale_a * scale_b).to(more["out_dtype"])
    left, right = _four_bit(a, scale_a), _four_bit(b.t(), scale_b)
    return (left @ right.T).to(more["out_dtype"])


def _four_bit(codes: Tensor, scale: Tensor) -> Tensor:
    rows, many = len(codes), codes.shape[1] // 8
    whole = rearrange(
        scale.view(torch.uint8),
        "(rt ct r four c) -> (rt four r) (ct c)",
        rt=-(-rows // 128),
        four=4,
        r=32,
        c=4,
    )[:rows, :many].view(torch.float8_e4m3fn)
    assert torch.equal(swizzled(whole).view(torch.uint8), scale.view(torch.uint8))
    values = blocks(looked_up(codes.view(torch.uint8), E2M1), 16)
    return (values * whole.float()[..., None]).flatten(1)


def int_mm(a: Tensor, b: Tensor) -> Tensor:
    """Source of what is asked: ATen/native/cuda/Blas.cpp, _int_mm_out_cuda."""
    assert a.dtype == b.dtype == torch.int8
    assert a.shape[0] > 16, f"self.size(0) needs to be greater than 16; got {a.shape[0]}"
    assert a.shape[1] % 8 == b.shape[1] % 8 == 0, f"no multiple of 8: {a.shape} {b.shape}"
    return (a.int() @ b.int()).int()


def flash(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    """FlashAttention: half precision, heads of up to 256 in eights, their channels side by side."""
    for part in (q, k, v):
        assert part.dtype in (torch.bfloat16, torch.float16), part.dtype
        assert part.shape[-1] % 8 == 0, part.shape
        assert part.shape[-1] <= 256, part.shape
        assert part.stride(-1) == 1, part.stride()
    out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
    return out, lse.float()


def efficient(q: Tensor, k: Tensor, v: Tensor, bias: None, with_lse: bool) -> tuple[Tensor, ...]:
    """CUTLASS's: in float32 heads in fours; its sums are as many as a multiple of 32."""
    assert with_lse
    assert bias is None
    for part in (q, k, v):
        assert part.shape[-1] % 4 == 0, part.shape
        assert part.stride(-1) == 1, part.stride()
    out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
    return out, F.pad(lse.float(), (0, -lse.shape[-1] % 32), value=torch.inf)


PRODUCTS: Mapping[Any, Callable[..., Any]] = {
    torch._scaled_mm: scaled_mm,
    torch._int_mm: int_mm,
    aten._scaled_dot_product_flash_attention: flash,
    aten._scaled_dot_product_efficient_attention: efficient,
}
