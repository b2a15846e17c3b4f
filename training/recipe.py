"""What is trained, by the compute at hand: three recipes, one code.

The first is what the shipped weights know; the CPU's is what two cores manage in a few nights; the
GPU's takes the whole vocabulary. An evaluation asks only for what its recipe knows.
"""

from __future__ import annotations

from dataclasses import dataclass

from fluxline.models.flux1.transformer import FluxConfig

CHANNELS = 16  # of the latents
T5_LENGTH = 24  # tokens; FluxPipeline's max_sequence_length must be the same
CLIP_LENGTH = 32
TEXT_WIDTH = 192  # of both encoders


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Vocabulary, scenes and model of one run. Shares are of all scenes; the rest is centred."""

    things: int  # the first so many lines of things.txt
    styles: int  # the first so many of things.STYLES
    faces: float  # a face in pixel art
    placed: float  # one small thing somewhere
    paired: float  # two things
    recoloured: float  # of the single things: in a colour not their own
    shapes: float  # of the batches: portrait or landscape
    heads: int
    depth_double: int
    depth_single: int
    batch: int

    @property
    def transformer(self) -> FluxConfig:
        """The model that this recipe trains."""
        return FluxConfig(
            in_channels=4 * CHANNELS,
            out_channels=4 * CHANNELS,
            depth_double=self.depth_double,
            depth_single=self.depth_single,
            head_dim=64,
            heads=self.heads,
            text_dim=TEXT_WIDTH,
            pooled_dim=TEXT_WIDTH,
            guidance=False,
            axes=(16, 24, 24),
        )


RECIPES = {
    "first": Recipe(
        things=122, styles=2, faces=0.0, placed=0.0, paired=0.0, recoloured=0.0,
        shapes=0.0, heads=4, depth_double=1, depth_single=4, batch=32,
    ),
    "cpu": Recipe(
        things=245, styles=2, faces=0.08, placed=0.2, paired=0.25, recoloured=0.1,
        shapes=0.2, heads=4, depth_double=1, depth_single=4, batch=32,
    ),
    "gpu": Recipe(
        things=991, styles=4, faces=0.05, placed=0.15, paired=0.25, recoloured=0.2,
        shapes=0.3, heads=6, depth_double=2, depth_single=6, batch=1024,
    ),
}  # fmt: skip
