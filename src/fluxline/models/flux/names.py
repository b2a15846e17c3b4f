"""Checkpoint names that FLUX.1 and FLUX.2 share, and how their tables are read.

A row reads: pattern of a checkpoint name, our parameter, the row at which it starts (counted in
hidden widths, D). `{i}` is the block's number.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

Row = tuple[str, str, int]
Slot = tuple[str, int, Tensor]


class Sizes(Protocol):
    """What of a model's numbers its names depend on."""

    @property
    def hidden(self) -> int:
        """D."""
        ...

    @property
    def depth_double(self) -> int:
        """How many double blocks there are."""
        ...

    @property
    def depth_single(self) -> int:
        """How many single blocks there are."""
        ...


class Span(NamedTuple):
    """Some rows of a layer of ours, from first to last, which is excluded; None: to its end."""

    layer: str
    first: int
    last: int | None


def diffusers_streams(mlp_in: str, mlp_out: str) -> list[Row]:
    """Both streams of a double block. mlp_in, mlp_out: what the MLP's layers are called."""
    return [
        *_stream("image", "to_q to_k to_v to_out.0", "norm_q norm_k", f"ff.{mlp_in} ff.{mlp_out}"),
        *_stream(
            "text",
            "add_q_proj add_k_proj add_v_proj to_add_out",
            "norm_added_q norm_added_k",
            f"ff_context.{mlp_in} ff_context.{mlp_out}",
        ),
    ]


def _stream(ours: str, projections: str, norms: str, mlp: str) -> list[Row]:
    q, k, v, out = (f"attn.{name}" for name in projections.split())
    norm_q, norm_k = (f"attn.{name}" for name in norms.split())
    mlp_in, mlp_out = mlp.split()
    return [
        (f"transformer_blocks.{{i}}.{theirs}", f"double_blocks.{{i}}.{ours}.{part}", row)
        for theirs, part, row in (
            (q, "to_qkv", 0),
            (k, "to_qkv", 1),
            (v, "to_qkv", 2),
            (norm_q, "qk_norm", 0),
            (norm_k, "qk_norm", 1),
            (out, "to_out", 0),
            (mlp_in, "mlp_in", 0),
            (mlp_out, "mlp_out", 0),
        )
    ]


BFL_ENDS: list[Row] = [
    ("img_in", "image_in", 0),
    ("txt_in", "text_in", 0),
    ("final_layer.linear", "image_out", 0),
]
BFL_BLOCKS: list[Row] = [
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
]


def is_bfl(names: Sequence[str]) -> bool:
    """Whether a checkpoint speaks BFL's dialect rather than diffusers'."""
    return any(name.startswith(("img_in.", "double_blocks.")) for name in names)


def linears_of(sizes: Sizes, tables: Iterable[Sequence[Row]]) -> dict[str, list[Span]]:
    """Every linear layer by every name that these tables have for it: which rows of ours it is.

    A row of an empty pattern says where the one before it ends.
    """
    found: dict[str, list[Span]] = {}
    for rows in tables:
        for pattern, target, row in rows:
            ends = [other for _, theirs, other in rows if theirs == target and other > row]
            for i in range(blocks_in(sizes, target)):
                last = min(ends) * sizes.hidden if ends else None
                ours = target.replace("{i}", str(i))
                span = Span(ours, row * sizes.hidden, last)
                if pattern and not ours.endswith("qk_norm"):
                    found[pattern.replace("{i}", str(i))] = [span]
    return found


def blocks_in(sizes: Sizes, pattern: str) -> int:
    """How many layers a pattern is the name of."""
    if "{i}" not in pattern:
        return 1
    return sizes.depth_single if pattern.startswith("single") else sizes.depth_double
