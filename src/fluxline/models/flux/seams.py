"""Where a FLUX may be cut for ranks that hold its weights together: both kinds have these blocks.

Attention by heads, MLPs along their inner width. In projections that are one matrix here, Q, K, V
and the MLP's layer lie side by side, and each is cut by itself. The modulation is computed once a
request and read by every block: its rows are held by all together, its answer by each. Embedders
and the last layer, little beside the rest, are everybody's.
"""

from fluxline.models.base import Seams, Side


def seams(heads: int, head_dim: int, *, inner: int, inners: int) -> Seams:
    """The seams of a transformer. inners: how many inner widths an MLP's first layer gives: two,
    where one is the other's gate."""
    qkv: tuple[Side, ...] = ("heads", "heads", "heads")
    width: Side = "inner"
    mlp = (width,) * inners
    return Seams(
        heads=heads,
        head_dim=head_dim,
        inner=inner,
        rows={
            "double_blocks.*.to_qkv": qkv,
            "double_blocks.*.mlp_in": mlp,
            "single_blocks.*.proj_in": (*qkv, *mlp),
        },
        columns={
            "double_blocks.*.to_out": ("heads",),
            "double_blocks.*.mlp_out": ("inner",),
            "single_blocks.*.proj_out": ("heads", "inner"),
        },
        gathered=("modulation",),
    )
