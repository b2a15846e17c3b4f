"""The closed-form latent code: PCA of 8x8 patches to 16 partly whitened channels.

The transformer is trained on this linear code, which costs nothing to compute; the autoencoder
of `vae.py` is trained to read and write it, so both agree. Scaled latents have mean 0 and
standard deviation 1, hence scaling_factor 1 and shift_factor 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from einops import rearrange

from training.compose import Composer
from training.recipe import CHANNELS
from training.scenes import random_scene, random_size

PATCH_PX = 8

WHITENING = 0.25  # divide each component by its variance to this power


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """A linear code: encode matrix `(192, 16)`, decode matrix `(16, 192)`, mean `(192,)`."""

    encode_matrix: torch.Tensor
    decode_matrix: torch.Tensor
    mean: torch.Tensor

    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        """Pictures `(B, 3, H, W)` to latents `(B, 16, H/8, W/8)`."""
        return rearrange(
            (_patches(pictures) - self.mean) @ self.encode_matrix, "b h w c -> b c h w"
        )

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents to blocky pictures: the best linear reconstruction."""
        flat = rearrange(latents, "b c h w -> b h w c") @ self.decode_matrix + self.mean
        return rearrange(flat, "b h w (c p q) -> b c (h p) (w q)", p=PATCH_PX, q=PATCH_PX, c=3)

    def preview(self) -> tuple[list[list[float]], list[float]]:
        """Matrix `(16, 3)` and bias `(3,)` from a latent pixel to the mean colour of its patch."""
        matrix = rearrange(self.decode_matrix, "k (c p) -> k c p", c=3).mean(-1)
        return matrix.tolist(), rearrange(self.mean, "(c p) -> c p", c=3).mean(-1).tolist()


def fit(composer: Composer, *, pictures: int = 1536, seed: int = 0) -> Code:
    """Fit the code to random training pictures."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(pictures // 32):
        scenes = [random_scene(rng, composer.stock) for _ in range(32)]
        rows.append(
            _patches(composer.draw(scenes, random_size(rng, composer.stock.recipe), rng)).flatten(
                0, 2
            )
        )
    flat = torch.cat(rows).double()
    mean = flat.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov((flat - mean).T))
    values, vectors = values.flip(0)[:CHANNELS], vectors.flip(1)[:, :CHANNELS]
    scale = values**-WHITENING
    scale = scale / (values * scale**2).mean().sqrt()
    return Code(
        encode_matrix=(vectors * scale).float(),
        decode_matrix=(vectors / scale).T.float(),
        mean=mean.float(),
    )


def save(code: Code, path: Path) -> None:
    """Write the three arrays of a code."""
    torch.save(
        {"encode": code.encode_matrix, "decode": code.decode_matrix, "mean": code.mean}, path
    )


def load(path: Path) -> Code:
    """Read what `save` wrote."""
    parts = torch.load(path, weights_only=True)
    return Code(encode_matrix=parts["encode"], decode_matrix=parts["decode"], mean=parts["mean"])


def pack(latents: torch.Tensor) -> torch.Tensor:
    """Latents `(B, 16, H, W)` to tokens `(B, H/2 W/2, 64)`, as FluxPipeline does."""
    return rearrange(latents, "b c (h p) (w q) -> b (h w) (c p q)", p=2, q=2)


def unpack(tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Tokens to latents; height and width in latent pixels."""
    return rearrange(
        tokens, "b (h w) (c p q) -> b c (h p) (w q)", h=height // 2, w=width // 2, p=2, q=2
    )


def _patches(pictures: torch.Tensor) -> torch.Tensor:
    return rearrange(pictures, "b c (h p) (w q) -> b h w (c p q)", p=PATCH_PX, q=PATCH_PX)
