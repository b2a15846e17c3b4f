"""FLUX.1 checkpoint names and ours: two dialects, one table each, and one that only LoRAs speak.

A row reads: pattern of a checkpoint name, our parameter, the row at which it starts (counted in
hidden widths, D). Where several tensors of a checkpoint share a parameter of ours, they are fused
by being written side by side. `{i}` is the block's number.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from fluxline.models.flux.names import (
    BFL_BLOCKS,
    BFL_ENDS,
    Row,
    Slot,
    Span,
    blocks_in,
    diffusers_streams,
    is_bfl,
    linears_of,
)
from fluxline.models.flux1.transformer import PER_FINAL, PER_SINGLE, PER_STREAM, FluxConfig

Where = Literal["", "double image", "double text", "single", "final", "final swapped"]

EMBEDDERS_DIFFUSERS = {
    "timestep_embedder": "time_in",
    "text_embedder": "pooled_in",
    "guidance_embedder": "guidance_in",
}


DIFFUSERS: list[Row] = [
    ("x_embedder", "image_in", 0),
    ("context_embedder", "text_in", 0),
    *(
        (f"time_text_embed.{theirs}.linear_{n}", f"{ours}.{part}", 0)
        for theirs, ours in EMBEDDERS_DIFFUSERS.items()
        for n, part in ((1, "into"), (2, "out"))
    ),
    *diffusers_streams("net.0.proj", "net.2"),
    ("single_transformer_blocks.{i}.attn.to_q", "single_blocks.{i}.proj_in", 0),
    ("single_transformer_blocks.{i}.attn.to_k", "single_blocks.{i}.proj_in", 1),
    ("single_transformer_blocks.{i}.attn.to_v", "single_blocks.{i}.proj_in", 2),
    ("single_transformer_blocks.{i}.proj_mlp", "single_blocks.{i}.proj_in", 3),
    ("single_transformer_blocks.{i}.attn.norm_q", "single_blocks.{i}.qk_norm", 0),
    ("single_transformer_blocks.{i}.attn.norm_k", "single_blocks.{i}.qk_norm", 1),
    ("single_transformer_blocks.{i}.proj_out", "single_blocks.{i}.proj_out", 0),
    ("proj_out", "image_out", 0),
]
DIFFUSERS_MODULATION: dict[str, Where] = {
    "transformer_blocks.{i}.norm1.linear": "double image",
    "transformer_blocks.{i}.norm1_context.linear": "double text",
    "single_transformer_blocks.{i}.norm.linear": "single",
    "norm_out.linear": "final",
}

CONTROLNET: list[Row] = [  # beside those of DIFFUSERS
    ("controlnet_x_embedder", "map_in", 0),
    ("controlnet_blocks.{i}", "double_outs.{i}", 0),
    ("controlnet_single_blocks.{i}", "single_outs.{i}", 0),
]

BFL: list[Row] = [
    *BFL_ENDS,
    *(
        (f"{theirs}.{layer}_layer", f"{ours}.{part}", 0)
        for theirs, ours in (
            ("time_in", "time_in"),
            ("vector_in", "pooled_in"),
            ("guidance_in", "guidance_in"),
        )
        for layer, part in (("in", "into"), ("out", "out"))
    ),
    *BFL_BLOCKS,
]
BFL_MODULATION: dict[str, Where] = {
    "double_blocks.{i}.img_mod.lin": "double image",
    "double_blocks.{i}.txt_mod.lin": "double text",
    "single_blocks.{i}.modulation.lin": "single",
    "final_layer.adaLN_modulation.1": "final swapped",  # shift before scale
}

XLABS: list[Row] = [  # adapters only
    *(
        (f"double_blocks.{{i}}.processor.{theirs}_lora{n}", f"double_blocks.{{i}}.{ours}.{part}", 0)
        for n, ours in ((1, "image"), (2, "text"))
        for theirs, part in (("qkv", "to_qkv"), ("proj", "to_out"))
    ),
    ("single_blocks.{i}.processor.qkv_lora", "single_blocks.{i}.proj_in", 0),
    ("", "single_blocks.{i}.proj_in", 3),  # where that ends: it has nothing for the MLP
    ("single_blocks.{i}.processor.proj_lora", "single_blocks.{i}.proj_out", 0),
]


@dataclass(frozen=True, slots=True)
class _Rule:
    target: str  # our parameter without its ending
    row: int  # in hidden widths; in rows for qk_norm
    where: Where


def layout_for(
    config: FluxConfig, names: Sequence[str]
) -> Callable[[str, Tensor], list[Slot] | None]:
    """Where each tensor of a checkpoint with these names belongs in a FluxTransformer.

    The function returned takes (name, tensor) and gives [(parameter, first row, part), ...], or
    None for a name that is not FLUX.1's.
    """
    if is_bfl(names):
        return partial(_place, _rules(BFL, BFL_MODULATION), config)
    return partial(_place, _rules(DIFFUSERS, DIFFUSERS_MODULATION), config)


def controlnet_layout(config: FluxConfig) -> Callable[[str, Tensor], list[Slot] | None]:
    """Where each tensor of a ControlNet belongs, as `layout_for`."""
    return partial(_place, _rules(DIFFUSERS + CONTROLNET, DIFFUSERS_MODULATION), config)


def _rules(rows: list[Row], modulation: dict[str, Where]) -> list[tuple[re.Pattern[str], _Rule]]:
    rules = [(pattern, _Rule(target, row, "")) for pattern, target, row in rows]
    rules += [(pattern, _Rule("modulation", 0, where)) for pattern, where in modulation.items()]
    return [(_compile(pattern), rule) for pattern, rule in rules]


def _compile(pattern: str) -> re.Pattern[str]:
    number = re.escape(pattern).replace(r"\{i\}", r"(\d+)")
    return re.compile(number + r"\.(weight|bias|scale)")


def _place(
    rules: list[tuple[re.Pattern[str], _Rule]], config: FluxConfig, name: str, tensor: Tensor
) -> list[Slot] | None:
    for pattern, rule in rules:
        if match := pattern.fullmatch(name):
            *number, kind = match.groups()
            block = int(number[0]) if number else 0
            target = rule.target.replace("{i}", str(block))
            if target.endswith("qk_norm"):
                return [(target, rule.row, tensor[None])]
            if not rule.where:
                return [(f"{target}.{kind}", rule.row * config.hidden, tensor)]
            return _place_modulation(config, f"{target}.{kind}", rule.where, block, tensor)
    return None


def _place_modulation(
    config: FluxConfig, target: str, where: Where, block: int, tensor: Tensor
) -> list[Slot]:
    """Rows of the one modulation matrix, in the order the blocks take their vectors."""
    singles = 2 * PER_STREAM * config.depth_double
    final = singles + PER_SINGLE * config.depth_single
    first = {
        "double image": 2 * PER_STREAM * block,
        "double text": 2 * PER_STREAM * block + PER_STREAM,
        "single": singles + PER_SINGLE * block,
    }.get(where, final)
    row = first * config.hidden
    if where == "final swapped":
        shift, scale = tensor.chunk(2)
        return [(target, row, scale), (target, row + config.hidden, shift)]
    return [(target, row, tensor)]


def linears(config: FluxConfig) -> dict[str, list[Span]]:
    """Every linear layer by every name that a dialect has for it: which rows of ours it is.

    Of several spans the layer's rows fill one after another.
    """
    found = linears_of(config, (DIFFUSERS, BFL, XLABS))
    for modulation in (DIFFUSERS_MODULATION, BFL_MODULATION):
        for pattern, where in modulation.items():
            for i in range(blocks_in(config, pattern)):
                found[pattern.replace("{i}", str(i))] = _modulation_spans(config, where, i)
    return found


def _modulation_spans(config: FluxConfig, where: Where, block: int) -> list[Span]:
    """Where the rows of one modulation layer stand in ours."""
    width = {"double image": PER_STREAM, "double text": PER_STREAM, "single": PER_SINGLE}
    theirs = torch.arange(width.get(where, PER_FINAL) * config.hidden, device="cpu")
    slots = _place_modulation(config, "modulation", where, block, theirs)
    in_their_order = sorted(slots, key=lambda slot: int(slot[2][0]))
    return [Span(layer, row, row + len(part)) for layer, row, part in in_their_order]
