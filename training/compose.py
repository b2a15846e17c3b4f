"""Draw scenes: sprites on plain backgrounds, in batches, on whatever device they lie.

Sprites are held premultiplied, because they are resampled here by `grid_sample`; the stored array
is straight RGBA, since Pillow premultiplies by itself. Recolouring turns the hue in the YIQ plane:
that is linear, so it may be done to premultiplied colours.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from training.recipe import Recipe
from training.scenes import Scene, Stock
from training.things import BACKGROUNDS, COLOURS, STYLES, THINGS

SPRITE_PX = 128
YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
PURITY = 0.7  # from here on a sprite has one hue that a word can name,
CHROMA = 0.08  # if it has so much of it


class Composer:
    """Holds the sprites of a recipe and pastes them onto backgrounds."""

    def __init__(self, data: Path, recipe: Recipe, device: str = "cpu") -> None:
        sprites, available = _sprites(data / "sprites.zip", recipe)
        hues, has_hue = _hues(sprites)
        gaps = torch.cos(TARGETS - hues[..., None])  # (N, S, 7)
        own = torch.where(has_hue & (gaps.amax(-1) > 0.9), gaps.argmax(-1), -1)
        self.stock = Stock(
            recipe=recipe,
            available=available,
            coloured=(has_hue.numpy() | ~available).all(1) & _can_be_called(recipe),
            own_colour=own.numpy(),
        )
        self.hues = hues  # (N, S) radians
        self.faces = _faces(data / "faces.npy").to(device) if recipe.faces else sprites[:0]
        self.sprites = sprites.to(device)  # (N, S, 4, 128, 128)
        colours = torch.tensor(list(BACKGROUNDS.values()), device=device)
        self.colours = colours.float() / 127.5 - 1  # (16, 3)

    def draw(
        self, scenes: list[Scene], size: tuple[int, int], rng: np.random.Generator | None
    ) -> torch.Tensor:
        """Return pictures `(B, 3, H, W)` in [-1, 1]; rng: things a little off their places."""
        picture = self.colours[[s.background for s in scenes]][:, :, None, None]
        picture = picture.expand(-1, -1, size[1], size[0])
        for layer in range(max(len(s.figures) for s in scenes)):
            having = [k for k, s in enumerate(scenes) if len(s.figures) > layer]
            rgba = self.figures([scenes[k] for k in having], layer, size, rng)
            picture = _pasted(picture, having, rgba)
        if having := [k for k, s in enumerate(scenes) if s.face is not None]:
            faces = self.faces[[s.face for s in scenes if s.face is not None]]
            picture = _pasted(picture, having, _framed(faces, size))
        return picture

    def figures(
        self,
        scenes: list[Scene],
        layer: int,
        size: tuple[int, int],
        rng: np.random.Generator | None,
    ) -> torch.Tensor:
        """Figure number `layer` of every scene in its place: premultiplied `(B, 4, H, W)`."""
        width, height = size
        figures = [s.figures[layer] for s in scenes]
        boxes = np.array([s.boxes(width, height)[layer] for s in scenes])
        if rng is not None:
            boxes[:, 2] *= rng.uniform(0.95, 1.04, len(scenes))
            boxes[:, :2] += rng.uniform(-0.02, 0.02, (len(scenes), 2)) * min(size)
        x, y, side = torch.from_numpy(boxes).float().to(self.sprites.device).T
        theta = torch.zeros(len(scenes), 2, 3, device=self.sprites.device)
        theta[:, 0, 0], theta[:, 1, 1] = width / side, height / side
        theta[:, 0, 2], theta[:, 1, 2] = (width - 2 * x) / side, (height - 2 * y) / side
        grid = F.affine_grid(theta, [len(scenes), 4, height, width], align_corners=False)
        sprites = self.sprites[[f.thing for f in figures], [f.style for f in figures]]
        for k, figure in enumerate(figures):
            if figure.colour is not None:
                own = self.hues[figure.thing, figure.style]
                turned = turn_hue(sprites[k], float(TARGETS[figure.colour] - own))
                sprites[k] = turned
        if float(side.min()) < SPRITE_PX / 1.5:  # a small one would alias
            sprites = F.interpolate(sprites, scale_factor=0.5, mode="area")
        return F.grid_sample(sprites, grid, align_corners=False)


def _pasted(beneath: torch.Tensor, rows: list[int], rgba: torch.Tensor) -> torch.Tensor:
    """Paste premultiplied `(R, 4, H, W)` in [0, 1] onto these rows of pictures in [-1, 1]."""
    pasted = 2 * rgba[:, :3] - rgba[:, 3:] + beneath[rows] * (1 - rgba[:, 3:])
    if len(rows) == len(beneath):
        return pasted
    return beneath.index_copy(0, torch.tensor(rows, device=beneath.device), pasted)


def _framed(faces: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Faces `(R, 4, 16, 16)` as large as they can be, standing on the lower edge."""
    width, height = size
    side = min(size)
    large = F.interpolate(faces, size=(side, side), mode="nearest")
    left = (width - side) // 2
    return F.pad(large, (left, width - side - left, height - side, 0))


def turn_hue(rgba: torch.Tensor, angle: float) -> torch.Tensor:
    """Turn the hue of a premultiplied sprite `(4, H, W)`; lightness and chroma stay."""
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    turn = torch.tensor([[1, 0, 0], [0, cos, -sin], [0, sin, cos]], dtype=torch.float32)
    matrix = (torch.linalg.inv(YIQ) @ turn @ YIQ).to(rgba.device)
    colour = torch.einsum("ij,jhw->ihw", matrix, rgba[:3])
    return torch.cat((colour.clamp(min=0).minimum(rgba[3:]), rgba[3:]))


def _hues(sprites: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean hue (N, S) in radians of sprites (N, S, 4, H, W), and whether it is the only one."""
    plane = torch.einsum("ij,nsjhw->nsihw", YIQ[1:], sprites[:, :, :3])
    chroma = plane.norm(dim=2).flatten(2).sum(-1)
    mean = plane.flatten(3).sum(-1)  # (N, S, 2)
    area = sprites[:, :, 3].flatten(2).sum(-1)
    purity = mean.norm(dim=-1) / chroma.clamp(min=1e-6)
    has_hue = (purity > PURITY) & (chroma / area > CHROMA)
    return torch.atan2(mean[..., 1], mean[..., 0]), has_hue


def _can_be_called(recipe: Recipe) -> np.ndarray:
    """Which things have a name without a colour in it: a blue "red heart" would be a riddle."""
    return np.array(
        [
            any(COLOURS.keys().isdisjoint(name.split()) for name in thing.names)
            for thing in THINGS[: recipe.things]
        ]
    )


def _target_hues() -> torch.Tensor:
    i, q = YIQ[1:] @ torch.tensor(list(COLOURS.values())).float().T
    return torch.atan2(q, i)


TARGETS = _target_hues()  # (7,) radians


def _sprites(path: Path, recipe: Recipe) -> tuple[torch.Tensor, np.ndarray]:
    """Premultiplied sprites (N, S, 4, 128, 128), zero where a style lacks a thing."""
    sprites = torch.zeros(recipe.things, recipe.styles, 4, SPRITE_PX, SPRITE_PX)
    available = np.zeros((recipe.things, recipe.styles), dtype=bool)
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        for t, s in np.ndindex(available.shape):
            name = f"{THINGS[t].code}/{STYLES[s]}.webp"
            if name in names:
                straight = Image.open(io.BytesIO(archive.read(name)))
                rgba = torch.from_numpy(np.array(straight)).permute(2, 0, 1).float() / 255
                rgba[:3] *= rgba[3:]
                sprites[t, s] = F.interpolate(rgba[None], size=(SPRITE_PX, SPRITE_PX), mode="area")
                available[t, s] = True
    return sprites, available


def _faces(path: Path) -> torch.Tensor:
    """Premultiplied faces (F, 4, 16, 16)."""
    rgba = torch.from_numpy(np.load(path)).permute(0, 3, 1, 2).float() / 255
    rgba[:, :3] *= rgba[:, 3:]
    return rgba
