"""FLUX.2 checkpoint names and ours: two dialects, one table each, and one that only LoRAs speak.

A row reads: pattern of a checkpoint name, our parameter, the row at which it starts (counted in
hidden widths, D). Where several tensors of a checkpoint share a parameter of ours, they are fused
by being written side by side. `{i}` is the block's number.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor

from fluxline.models.flux.names import (
    BFL_BLOCKS,
    BFL_ENDS,
    Row,
    Slot,
    Span,
    diffusers_streams,
    is_bfl,
    linears_of,
)
from fluxline.models.flux2.transformer import PER_FINAL, PER_STREAM, VECTORS, Flux2Config

FINAL = VECTORS - PER_FINAL
SHIFT_FIRST = "final_layer.adaLN_modulation.1"  # BFL's; everybody else's has the scale first


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
    *diffusers_streams("linear_in", "linear_out"),
    ("single_transformer_blocks.{i}.attn.to_qkv_mlp_proj", "single_blocks.{i}.proj_in", 0),
    ("single_transformer_blocks.{i}.attn.norm_q", "single_blocks.{i}.qk_norm", 0),
    ("single_transformer_blocks.{i}.attn.norm_k", "single_blocks.{i}.qk_norm", 1),
    ("single_transformer_blocks.{i}.attn.to_out", "single_blocks.{i}.proj_out", 0),
    ("proj_out", "image_out", 0),
]

BFL: list[Row] = [
    *BFL_ENDS,
    *(
        (f"{name}.{layer}_layer", f"{name}.{part}", 0)
        for name in ("time_in", "guidance_in")
        for layer, part in (("in", "into"), ("out", "out"))
    ),
    ("double_stream_modulation_img.lin", "modulation", 0),
    ("double_stream_modulation_txt.lin", "modulation", PER_STREAM),
    ("single_stream_modulation.lin", "modulation", 2 * PER_STREAM),
    (SHIFT_FIRST, "modulation", FINAL),
    *BFL_BLOCKS,
]

CUT: list[Row] = [  # adapters only: some exports have lost the first letters of diffusers' names
    (pattern.replace("transformer_blocks.", "sformer_blocks."), target, row)
    for pattern, target, row in DIFFUSERS
    if pattern.startswith("transformer_blocks.")
]


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


def linears(config: Flux2Config) -> dict[str, list[Span]]:
    """Every linear layer by every name that a dialect has for it: which rows of ours it is.

    Of several spans the layer's rows fill one after another.
    """
    found = linears_of(config, (DIFFUSERS, BFL, CUT))
    [(layer, scale, end)] = found[SHIFT_FIRST]
    shift = scale + config.hidden
    found[SHIFT_FIRST] = [Span(layer, shift, end), Span(layer, scale, shift)]
    return found
