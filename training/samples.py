"""A few pictures of a model in training, to be looked at while it learns."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from PIL import Image

from training import code
from training.painter import Painter
from training.recipe import CHANNELS

SIZE, STEPS = (128, 128), 8
PROMPTS = (
    "a red fox", "a noto style cat", "a 3d robot on a green background", "a blue apple",
    "a cat and a dog", "a moon above a house", "a tiny heart at the bottom",
    "pixel art portrait of a person with long blond hair, wearing sunglasses",
)  # fmt: skip


@torch.no_grad()
def row(painter: Painter, latent_code: code.Code, seed: int = 0) -> Image.Image:
    """One picture of every prompt by Euler steps, side by side, decoded by the linear code."""
    model, generator = painter.transformer, torch.Generator().manual_seed(seed)
    h, w = SIZE[1] // code.PATCH_PX, SIZE[0] // code.PATCH_PX
    states, pooled = painter.encoders(*painter.encoders.tokens(list(PROMPTS)))
    latents = torch.randn(len(PROMPTS), CHANNELS, h, w, generator=generator)
    x = code.pack(latents).to(states.device)
    told, rope = model.embed_text(states), painter.rope(SIZE)
    sigmas = torch.linspace(1, 0, STEPS + 1).tolist()
    for now, then in itertools.pairwise(sigmas):
        modulation = model.modulate(torch.full_like(pooled[:, 0], now), None, pooled)
        x = x + (then - now) * model(x, told, modulation, rope)
    pictures = latent_code.decode(code.unpack(x.cpu(), h, w))
    pixels = ((pictures + 1) * 127.5).clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    return Image.fromarray(np.concatenate(list(pixels), 1))
