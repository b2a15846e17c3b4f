"""Blocks over text and image, bound to the vectors of an evaluation: all alike from outside.

For whoever walks a transformer in part, and need not know which of its blocks keep text and image
apart. A whole walk does not go this way: it would join and part both at every block.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from fluxline.ops.attention import Attend

BoundBlock = Callable[[Tensor, Tensor, Tensor, Attend], tuple[Tensor, Tensor]]
"""(image (R, N, D), text (R, L, D), rope, attend) to image and text, one block further. There may
be no text: its keys are then `attend`'s business."""

Vectors = Sequence[Tensor]


class Staged(Protocol):
    """A transformer over tokens that can be walked in part."""

    def enter(self, x: Tensor) -> Tensor:
        """Image tokens (R, n, C) as the blocks read them: (R, n, D)."""
        ...

    def bound_blocks(self, modulation: Tensor) -> Sequence[BoundBlock]:
        """All blocks in their order, for one evaluation's vectors (R, M, D)."""
        ...

    def leave(self, image: Tensor, modulation: Tensor) -> Tensor:
        """Velocity (R, n, C) of image tokens (R, n, D) after all blocks."""
        ...


def bind_double(
    block: Callable[..., tuple[Tensor, Tensor]], for_image: Vectors, for_text: Vectors
) -> BoundBlock:
    """A block that keeps text and image apart."""

    def bound(image: Tensor, text: Tensor, rope: Tensor, attend: Attend) -> tuple[Tensor, Tensor]:
        return block(image, text, for_image, for_text, rope, attend)

    return bound


def bind_single(block: Callable[..., Tensor], vectors: Vectors) -> BoundBlock:
    """A block that runs both as one sequence, text first."""

    def bound(image: Tensor, text: Tensor, rope: Tensor, attend: Attend) -> tuple[Tensor, Tensor]:
        both = block(torch.cat((text, image), dim=1), vectors, rope, attend)
        length = text.shape[1]
        return both[:, length:], both[:, :length]

    return bound
