"""Autoencoders of diffusers behind one pair of verbs: pictures to normalized latents and back."""

from typing import Any

import torch
from torch import Tensor


class Vae:
    """One of diffusers' autoencoders: AutoencoderKL, its Qwen and Hunyuan kin, or the DC.

    What differs among them is read off their configurations. Thread: the engine's.
    """

    def __init__(self, vae: Any) -> None:  # diffusers is untyped
        self.vae = vae
        config = vae.config
        self.scale = _scale(vae)
        self.channels: int = config.get("z_dim") or config.latent_channels
        self._is_video = "temperal_downsample" in config  # a picture is a film of one frame
        self._scaling: float = config.get("scaling_factor") or 1.0
        mean = config.get("latents_mean") or [config.get("shift_factor") or 0.0]
        spread = config.get("latents_std") or [1.0]
        self._mean = torch.tensor(mean, device=vae.device).reshape(1, -1, 1, 1)
        self._spread = torch.tensor(spread, device=vae.device).reshape(1, -1, 1, 1)

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures (R, 3, height, width) from about -1 to 1, of latents (R, c, h, w)."""
        latents = (latents / self._scaling * self._spread + self._mean).to(self.vae.dtype)
        if not self._is_video:
            return self._decoded(latents)
        return self._decoded(latents.unsqueeze(2))[:, :, 0]

    def encode(self, pictures: Tensor) -> Tensor:
        """Latents (R, c, h, w) float32 of pictures: the mean of what the encoder says."""
        pictures = pictures.to(self.vae.dtype)
        encoded = self.vae.encode(pictures.unsqueeze(2) if self._is_video else pictures)
        if hasattr(encoded, "latent_dist"):
            latents = encoded.latent_dist.mode().float()
        else:
            latents = encoded.latent.float()
        latents = latents[:, :, 0] if self._is_video else latents
        normalized: Tensor = (latents - self._mean) / self._spread * self._scaling
        return normalized

    def _decoded(self, latents: Tensor) -> Tensor:
        pictures: Tensor = self.vae.decode(latents, return_dict=False)[0]
        return pictures


def _scale(vae: Any) -> int:
    """Pixels a latent position stands for, along a side."""
    said = vae.config.get("spatial_compression_ratio") or vars(vae).get("spatial_compression_ratio")
    return int(said or 2 ** (len(vae.config.block_out_channels) - 1))
