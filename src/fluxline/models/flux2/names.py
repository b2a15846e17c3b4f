"""FLUX.2 checkpoint names and ours: two dialects, one table each.

A row reads: pattern of a checkpoint name, our parameter, the row at which it starts (counted in
hidden widths, D). Where several tensors of a checkpoint share a parameter of ours, they are fused
by being written side by side. `{i}` is the block's number.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor

from fluxline.models.flux2.transformer import PER_FINAL, PER_STREAM, VECTORS, Flux2Config

Row = tuple[str, str, int]
Slot = tuple[str, int, Tensor]

FINAL = VECTORS - PER_FINAL
SHIFT_FIRST = "final_layer.adaLN_modulation.1"  # BFL's; everybody else's has the scale first


def _stream(ours: str, qkv: str, out: str, ff: str, norm: str) -> list[Row]:
    block = "transformer_blocks.{i}."
    target = f"double_blocks.{{i}}.{ours}."
    q, k, v = qkv.split()
    return [
        (f"{block}attn.{q}", f"{target}to_qkv", 0),
        (f"{block}attn.{k}", f"{target}to_qkv", 1),
        (f"{block}attn.{v}", f"{target}to_qkv", 2),
        (f"{block}attn.norm_{norm}q", f"{target}qk_norm", 0),
        (f"{block}attn.norm_{norm}k", f"{target}qk_norm", 1),
        (f"{block}attn.{out}", f"{target}to_out", 0),
        (f"{block}{ff}.linear_in", f"{target}mlp_in", 0),
        (f"{block}{ff}.linear_out", f"{target}mlp_out", 0),
    ]


DIFFUSERS: list[Row] = [
    ("x_embedder", "image_in", 0),
    ("context_embedder", "text_in", 0),
    *(
        (f"time_guidance_embed.{theirs}.linear_{n}", f"{ours}.{part}", 0)
        for theirs, ours in (("timestep_embedder", "time_in"), ("guidance_embedder", "guidance_in"))
        for n, part in ((1, "into"), (2, "out"))
    ),
    ("double_stream_modulation_img.linear", "modulation", 0),
    ("double_stream_modulation_txt.linear", "modulation", PER_STREAM),
    ("single_stream_modulation.linear", "modulation", 2 * PER_STREAM),
    ("norm_out.linear", "modulation", FINAL),
    *_stream("image", "to_q to_k to_v", "to_out.0", "ff", ""),
    *_stream("text", "add_q_proj add_k_proj add_v_proj", "to_add_out", "ff_context", "added_"),
    ("single_transformer_blocks.{i}.attn.to_qkv_mlp_proj", "single_blocks.{i}.proj_in", 0),
    ("single_transformer_blocks.{i}.attn.norm_q", "single_blocks.{i}.qk_norm", 0),
    ("single_transformer_blocks.{i}.attn.norm_k", "single_blocks.{i}.qk_norm", 1),
    ("single_transformer_blocks.{i}.attn.to_out", "single_blocks.{i}.proj_out", 0),
    ("proj_out", "image_out", 0),
]

BFL: list[Row] = [
    ("img_in", "image_in", 0),
    ("txt_in", "text_in", 0),
    *(
        (f"{name}.{layer}_layer", f"{name}.{part}", 0)
        for name in ("time_in", "guidance_in")
        for layer, part in (("in", "into"), ("out", "out"))
    ),
    ("double_stream_modulation_img.lin", "modulation", 0),
    ("double_stream_modulation_txt.lin", "modulation", PER_STREAM),
    ("single_stream_modulation.lin", "modulation", 2 * PER_STREAM),
    (SHIFT_FIRST, "modulation", FINAL),
    *(
        (f"double_blocks.{{i}}.{short}_{theirs}", f"double_blocks.{{i}}.{ours}.{part}", row)
        for short, ours in (("img", "image"), ("txt", "text"))
        for theirs, part, row in (
            ("attn.qkv", "to_qkv", 0),
            ("attn.norm.query_norm", "qk_norm", 0),
            ("attn.norm.key_norm", "qk_norm", 1),
            ("attn.proj", "to_out", 0),
            ("mlp.0", "mlp_in", 0),
            ("mlp.2", "mlp_out", 0),
        )
    ),
    ("single_blocks.{i}.linear1", "single_blocks.{i}.proj_in", 0),
    ("single_blocks.{i}.norm.query_norm", "single_blocks.{i}.qk_norm", 0),
    ("single_blocks.{i}.norm.key_norm", "single_blocks.{i}.qk_norm", 1),
    ("single_blocks.{i}.linear2", "single_blocks.{i}.proj_out", 0),
    ("final_layer.linear", "image_out", 0),
]


def is_bfl(names: Sequence[str]) -> bool:
    """Whether a checkpoint speaks BFL's dialect rather than diffusers'."""
    return any(name.startswith(("img_in.", "double_blocks.")) for name in names)


def layout_for(
    config: Flux2Config, names: Sequence[str]
) -> Callable[[str, Tensor], list[Slot] | None]:
    """Where each tensor of a checkpoint with these names belongs in a Flux2Transformer.

    The function returned takes (name, tensor) and gives [(parameter, first row, part), ...], or
    None for a name that is not FLUX.2's.
    """
    rows = BFL if is_bfl(names) else DIFFUSERS
    rules = [(_compile(pattern), target, row) for pattern, target, row in rows]
    return partial(_place, rules, config.hidden)


def _compile(pattern: str) -> re.Pattern[str]:
    number = re.escape(pattern).replace(r"\{i\}", r"(\d+)")
    return re.compile(number + r"\.(?:weight|scale)")


def _place(
    rules: list[tuple[re.Pattern[str], str, int]], hidden: int, name: str, tensor: Tensor
) -> list[Slot] | None:
    for pattern, target, row in rules:
        if match := pattern.fullmatch(name):
            target = target.format(i=next(iter(match.groups()), ""))
            if target.endswith("qk_norm"):
                return [(target, row, tensor[None])]
            first = row * hidden
            if name.startswith(SHIFT_FIRST):
                shift, scale = tensor.chunk(2)
                return [
                    (f"{target}.weight", first, scale),
                    (f"{target}.weight", first + hidden, shift),
                ]
            return [(f"{target}.weight", first, tensor)]
    return None
