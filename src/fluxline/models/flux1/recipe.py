"""Which layers of a FLUX.1 may be held in fewer bits. What is not in a table stays as it is.

Of the transformer (`flux/recipe.py`), the modulation that stays is 27 % of the weights, read once a
request. CLIP is small and stays.
"""

from collections.abc import Sequence

from torch import Tensor

from fluxline.models.base import Layout

T5 = (
    "encoder.block.*.SelfAttention.?",
    "encoder.block.*.DenseReluDense.w*",
)
T5_INSTEAD = {"int8-dynamic": "int8", "fp4": "hqq4"}
"""T5 runs once a prompt and has outliers in what goes through it: its activations stay."""


def t5_layout(names: Sequence[str]) -> Layout:
    """Where each tensor of a checkpoint with these names belongs in a T5EncoderModel: as named.

    Its embedding goes by two names, and some checkpoints have it twice.
    """
    shared, alias = "shared.weight", "encoder.embed_tokens.weight"

    def place(name: str, tensor: Tensor) -> list[tuple[str, int, Tensor]]:
        if name == alias:
            return [] if shared in names else [(shared, 0, tensor)]
        return [(name, 0, tensor)]

    return place
