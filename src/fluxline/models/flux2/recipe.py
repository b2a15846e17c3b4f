"""Which layers of a FLUX.2 may be held in fewer bits. What is not in a table stays as it is.

Of the transformer (`flux/recipe.py`), the modulation that stays is shared by all blocks and little:
4 % of klein 4B. The text encoder keeps its words.
"""

import re

from torch import Tensor

from fluxline.models.base import Layout

TEXT = (
    "layers.*.self_attn.?_proj",
    "layers.*.mlp.*_proj",
)
TEXT_INSTEAD = {"int8-dynamic": "int8", "fp4": "hqq4"}
"""It runs once a prompt, and some of its activations are huge: they stay."""

_DECODER = re.compile(r"(?:model\.language_model|language_model\.model|model)\.(.+)")
_LAYER = re.compile(r"layers\.(\d+)\..+")
_UNREAD = re.compile(
    r"(norm|lm_head|vision_tower|multi_modal_projector|language_model\.lm_head)\..+"
)


def text_layout(layers: int) -> Layout:
    """Where each tensor of a language model belongs in its decoder, of which so many layers are
    kept: what stands above them, its head and its eyes fill nothing.
    """

    def place(name: str, tensor: Tensor) -> list[tuple[str, int, Tensor]]:
        inner = match[1] if (match := _DECODER.fullmatch(name)) else name
        if (layer := _LAYER.fullmatch(inner)) and int(layer[1]) >= layers:
            return []
        return [] if _UNREAD.fullmatch(inner) else [(inner, 0, tensor)]

    return place
