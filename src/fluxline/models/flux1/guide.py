"""What the variants of FLUX.1 read of pictures, made once for all evaluations of many rows."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True, eq=False)
class FluxGuide:
    """What stands beside the noise, or nothing; on the model's device, never written.

    channels: (N, C') beside every image token: a picture or what is left of one, and its mask.
    tokens: (K, C) of pictures looked at, after the image's; sizes: (h, w) of each one's latent.
    text: (T, D) of what pictures show, after the prompt's. drawn_after: (N, C), a ControlNet's map.
    """

    channels: Tensor | None = None
    tokens: Tensor | None = None
    sizes: tuple[tuple[int, int], ...] = ()
    text: Tensor | None = None
    drawn_after: Tensor | None = None

    @property
    def bytes(self) -> int:
        """Memory it holds."""
        parts = (self.channels, self.tokens, self.text, self.drawn_after)
        return sum(part.nbytes for part in parts if part is not None)


NO_GUIDE = FluxGuide()
