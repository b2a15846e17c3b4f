"""Draw training pictures on the fly: one thing, centred, on one plain background.

Sprites are held premultiplied, because they are resampled here by `grid_sample`; the stored
array is straight RGBA, since Pillow premultiplies by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from training.things import (
    BACKGROUNDS,
    STYLES,
    THINGS,
    is_background_held_out,
    is_style_held_out,
)

BACKGROUND_NAMES = tuple(BACKGROUNDS)
DEFAULT_STYLE, DEFAULT_BACKGROUND = STYLES.index("3d"), BACKGROUND_NAMES.index("white")
SIZES = ((128, 128), (160, 96), (96, 160))  # width, height
DEFAULT_STYLE_SHARE = 0.8  # of the pictures whose caption names no style,
DEFAULT_BACKGROUND_SHARE = 0.85  # or no background: a plain prompt has a plain answer
_SPRITE_PX = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What one picture shows, as indices into THINGS, STYLES and BACKGROUND_NAMES.

    And what its caption says of it: style and background may be left unsaid.
    """

    thing: int
    style: int
    background: int
    says_style: bool = True
    says_background: bool = True


def random_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene that is allowed in training."""
    while True:
        says_style, says_background = bool(rng.random() < 0.5), bool(rng.random() < 0.6)
        style, background = int(rng.integers(len(STYLES))), int(rng.integers(len(BACKGROUNDS)))
        if not says_style and rng.random() < DEFAULT_STYLE_SHARE:
            style = DEFAULT_STYLE
        if not says_background and rng.random() < DEFAULT_BACKGROUND_SHARE:
            background = DEFAULT_BACKGROUND
        scene = Scene(
            thing=int(rng.integers(len(THINGS))), style=style, background=background,
            says_style=says_style, says_background=says_background,
        )  # fmt: skip
        if not is_held_out(scene):
            return scene


def is_held_out(scene: Scene) -> bool:
    """Whether a scene is kept for the evaluation."""
    name = BACKGROUND_NAMES[scene.background]
    return is_style_held_out(scene.thing, scene.style) or is_background_held_out(scene.thing, name)


def random_size(rng: np.random.Generator) -> tuple[int, int]:
    """Draw the (width, height) of a batch: square three times in four."""
    draw = rng.random()
    return SIZES[0] if draw < 0.75 else SIZES[1] if draw < 0.875 else SIZES[2]


class Composer:
    """Holds the sprites and pastes them onto backgrounds in batches."""

    def __init__(self, data: Path, device: str = "cpu") -> None:
        straight = torch.from_numpy(np.load(data / "sprites.npz")["sprites"])
        rows = [_premultiplied(thing) for thing in straight]
        self.sprites = torch.stack(rows).to(device)  # (N, S, 4, 128, 128)
        colours = torch.tensor(list(BACKGROUNDS.values()), device=device)
        self.colours = colours.float() / 127.5 - 1  # (16, 3)

    def draw(
        self, scenes: list[Scene], size: tuple[int, int], rng: np.random.Generator | None
    ) -> torch.Tensor:
        """Return pictures `(B, 3, H, W)` in [-1, 1]; without rng, unjittered."""
        width, height = size
        batch, device = len(scenes), self.sprites.device
        jitter = np.zeros((batch, 3)) if rng is None else rng.uniform(-1, 1, (batch, 3))
        share = torch.tensor(0.89 + 0.04 * jitter[:, 0], device=device).float()
        pixels = share * min(size)
        theta = torch.zeros(batch, 2, 3, device=device)
        theta[:, 0, 0], theta[:, 1, 1] = width / pixels, height / pixels
        theta[:, :, 2] = 2 * 2.5 * torch.tensor(jitter[:, 1:], device=device).float()
        theta[:, :, 2] /= pixels[:, None]
        grid = F.affine_grid(theta, [batch, 4, height, width], align_corners=False)
        index = [[s.thing for s in scenes], [s.style for s in scenes]]
        rgba = F.grid_sample(self.sprites[index[0], index[1]], grid, align_corners=False)
        ground = self.colours[[s.background for s in scenes]][:, :, None, None]
        colour, alpha = rgba[:, :3], rgba[:, 3:]
        return 2 * colour - alpha + ground * (1 - alpha)


def _premultiplied(straight: torch.Tensor) -> torch.Tensor:
    rgba = straight.permute(0, 3, 1, 2).float() / 255  # (S, 4, 256, 256)
    rgba[:, :3] *= rgba[:, 3:]
    return F.interpolate(rgba, size=(_SPRITE_PX, _SPRITE_PX), mode="area")
