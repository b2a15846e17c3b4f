"""A ControlNet of FLUX.1: a few blocks that read a map too, and tell the others what to add.

Its blocks are FLUX.1's own. Source: Zhang et al. 2023, "Adding Conditional Control to Text-to-Image
Diffusion Models"; the layout is diffusers' FluxControlNetModel, as InstantX and Shakker trained it.
"""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from fluxline.models.flux1.transformer import Aside, FluxConfig, Trunk
from fluxline.ops.attention import Attend, attend


class ControlNet(Trunk):
    """`forward` is its part of one evaluation of R rows.

    scale: how loud it speaks; 1 is as it was trained.
    """

    def __init__(self, config: FluxConfig, scale: float = 1.0) -> None:
        super().__init__(config, config.block_vectors)
        self.scale = scale
        d = config.hidden
        self.map_in = nn.Linear(config.in_channels, d)
        self.double_outs = nn.ModuleList(nn.Linear(d, d) for _ in range(config.depth_double))
        self.single_outs = nn.ModuleList(nn.Linear(d, d) for _ in range(config.depth_single))

    def forward(
        self,
        x: Tensor,
        drawn_after: Tensor,
        text: Tensor,
        modulation: Tensor,
        rope: Tensor,
        attend: Attend = attend,
    ) -> list[Tensor]:
        """What each of its blocks has to say (R, N, D) to image tokens x (R, N, C).

        drawn_after: (R, N, C), the map's clean tokens. The rest as of `FluxTransformer.forward`.
        """
        outs = [*self.double_outs, *self.single_outs]
        said: list[Tensor] = []

        def listen(number: int, image: Tensor) -> None:
            said.append(self.scale * outs[number](image))

        image = self.image_in(x) + self.map_in(drawn_after)
        self.walk(image, text, modulation.unsqueeze(2).unbind(1), rope, attend, listen)
        return said

    def aside(self, said: Sequence[Tensor], whole: FluxConfig) -> Aside:
        """Spread what it said over the blocks of the whole network: each for some in a row."""
        double, single = said[: self.config.depth_double], said[self.config.depth_double :]
        per_block = [
            *_spread(double, whole.depth_double),
            *_spread(single, whole.depth_single),
        ]
        return lambda number, image: per_block[number]


def _spread(said: Sequence[Tensor], blocks: int) -> list[Tensor | None]:
    if not said:
        return [None] * blocks
    in_a_row = math.ceil(blocks / len(said))
    return [said[block // in_a_row] for block in range(blocks)]
