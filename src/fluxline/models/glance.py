"""What latents are averaged to for a preview, where no map from them to colours is known."""

import torch.nn.functional as F
from torch import Tensor

GLANCE_PX = 128  # of a preview's longer side, about


def glance_of(latents: Tensor, scale: int) -> Tensor:
    """Latents (R, c, h, w), a position standing for scale px, at so few that decoding is cheap."""
    coarse = max(1.0, max(latents.shape[2:]) * scale / GLANCE_PX)
    sides = [max(1, round(side / coarse)) for side in latents.shape[2:]]
    return F.interpolate(latents, sides, mode="area")
