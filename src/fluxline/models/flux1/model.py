"""FLUX.1 as the engine asks for it: prompt to conditioning, tokens to velocity, tokens to picture.

Holds weights and nothing of any request. Everything that is the same in all evaluations of a row
(projected text, rotations, modulation vectors) is made once, in a `FluxContext`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from fluxline.models.base import Conditioning, ModelSpec, Pictures, to_uint8
from fluxline.models.flux1.latents import image_ids, pack, text_ids, unpack
from fluxline.models.flux1.text import TextEncoders
from fluxline.models.flux1.transformer import FluxTransformer


@dataclass(frozen=True, slots=True)
class PreviewMap:
    """A linear map from a latent position to RGB in [-1, 1]: weight (c, 3), bias (3,)."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class FluxContext:
    """What one row needs in every evaluation. Shapes: L text tokens, E sigmas, M vectors."""

    text: Tensor  # (L, D)
    rope: Tensor  # (S, head_dim / 2)
    modulation: Tensor  # (E, M, D)
    evaluation: dict[float, int]  # sigma -> row of modulation

    @property
    def text_tokens(self) -> int:
        """L."""
        return self.text.shape[0]

    @property
    def image_tokens(self) -> int:
        """N."""
        return self.rope.shape[0] - self.text.shape[0]


class Flux1:
    """The FLUX.1 family. Thread: the engine's.

    vae: diffusers' AutoencoderKL. weights: a fingerprint of all of them. preview: None if nobody
    fitted a map for this VAE.
    """

    def __init__(
        self,
        spec: ModelSpec,
        *,
        transformer: FluxTransformer,
        text: TextEncoders,
        vae: Any,  # diffusers is untyped
        weights: str,
        preview: PreviewMap | None = None,
    ) -> None:
        self.spec = spec
        self.transformer = transformer
        self.text = text
        self.vae = vae
        self.weights = weights
        self._preview = preview
        parameter = transformer.image_in.weight
        self.device, self.dtype = parameter.device, parameter.dtype
        self.vae_scale = 2 ** (len(vae.config.block_out_channels) - 1)
        self._rope = lru_cache(maxsize=64)(self._make_rope)

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str]) -> list[Conditioning]:
        """Encode prompts in one batch; the text comes out projected to the hidden width."""
        encoded = self.text.encode(prompts)
        text = self.transformer.embed_text(encoded.sequence.to(self.device, self.dtype))
        pooled = encoded.pooled.to(self.device, self.dtype)
        return [
            Conditioning(text[i].clone(), pooled[i].clone(), truncated)
            for i, truncated in enumerate(encoded.truncated)
        ]

    def noise(self, generator: Generator, width: int, height: int) -> Tensor:
        """Tokens (N, C) float32 of a size on the grid, from a CPU generator.

        Drawn as diffusers draws them: as a latent (1, c, h, w) in the model's dtype.
        """
        h, w = self._latent_size(width, height)
        channels = self.vae.config.latent_channels
        latent = torch.randn((1, channels, h, w), generator=generator, dtype=self.dtype)
        return pack(latent.float())[0].to(self.device)

    @torch.inference_mode()
    def context(
        self,
        conditioning: Conditioning,
        *,
        width: int,
        height: int,
        guidance: float | None,
        sigmas: Sequence[float],
        guide: None = None,
    ) -> FluxContext:
        """Prepare one row: all its modulation vectors in one product."""
        sigma = torch.tensor(sigmas, device=self.device)
        strength = None if guidance is None else torch.full_like(sigma, guidance)
        modulation = self.transformer.modulate(sigma, strength, conditioning.pooled[None])
        rope = self._rope(conditioning.text.shape[0], *self._latent_size(width, height))
        row_of = {value: row for row, value in enumerate(sigmas)}
        return FluxContext(conditioning.text, rope, modulation, row_of)

    def guide(self, pictures: Pictures) -> None:
        """None: this model reads no pictures itself."""

    @torch.inference_mode()
    def evaluate(
        self, x: Tensor, sigmas: Sequence[float], contexts: Sequence[FluxContext]
    ) -> Tensor:
        """Velocity (R, N, C) float32 of tokens x (R, N, C), each row at its sigma and context."""
        modulation = torch.stack(
            [c.modulation[c.evaluation[s]] for s, c in zip(sigmas, contexts, strict=True)]
        )
        text = torch.stack([c.text for c in contexts])
        rope = contexts[0].rope[None]
        if any(c.rope is not contexts[0].rope for c in contexts):
            rope = torch.stack([c.rope for c in contexts])
        velocity: Tensor = self.transformer(x.to(self.dtype), text, modulation, rope)
        return velocity.float()

    @torch.inference_mode()
    def decode(self, x: Tensor, width: int, height: int) -> Tensor:
        """Pictures uint8 (R, height, width, 3) on the CPU, of clean tokens x (R, N, C)."""
        latent = unpack(x, *self._latent_size(width, height))
        config = self.vae.config
        latent = latent / config.scaling_factor + (config.shift_factor or 0.0)
        picture = self.vae.decode(latent.to(self.vae.dtype), return_dict=False)[0]
        return to_uint8(picture).permute(0, 2, 3, 1).contiguous().cpu()

    @torch.inference_mode()
    def encode_picture(self, pixels: Tensor) -> Tensor:
        """Clean tokens (N, C) float32 of a picture uint8 (h, w, 3), whose sides are on the grid.

        The mean of what the VAE makes of it, so that the same picture is always the same tokens.
        """
        picture = pixels.to(self.device, self.vae.dtype).permute(2, 0, 1)[None] / 127.5 - 1
        latent = self.vae.encode(picture).latent_dist.mode().float()
        config = self.vae.config
        return pack((latent - (config.shift_factor or 0.0)) * config.scaling_factor)[0]

    def encode_mask(self, mask: Tensor) -> Tensor:
        """Tokens (N, C) float32 of a mask uint8 (h, w): 1 where any pixel below is redrawn."""
        patches = F.max_pool2d((mask >= 128).float()[None, None], self.vae_scale)
        channels = self.vae.config.latent_channels
        return pack(patches.expand(1, channels, -1, -1))[0].to(self.device)

    @torch.inference_mode()
    def preview(self, x0: Tensor, width: int, height: int) -> Tensor | None:
        """What clean tokens (N, C) would look like, one px a latent position: uint8 (h, w, 3)."""
        if self._preview is None:
            return None
        latent = unpack(x0[None], *self._latent_size(width, height))[0].permute(1, 2, 0)
        rgb = latent.float() @ self._preview.weight + self._preview.bias
        return to_uint8(rgb).cpu()

    def _latent_size(self, width: int, height: int) -> tuple[int, int]:
        return height // self.vae_scale, width // self.vae_scale

    def _make_rope(self, text_tokens: int, h: int, w: int) -> Tensor:
        ids = torch.cat((text_ids(text_tokens), image_ids(h, w)))
        return self.transformer.rope(ids).to(self.device)  # float64 angles: not on every device
