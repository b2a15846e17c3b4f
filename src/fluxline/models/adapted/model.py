"""A model of another family as the engine asks for it: diffusers' network in our engine.

Knows latents and tokens, not families: what a family wants is its `Family`. Velocities are those
of the straight flow, whatever the network predicts; `levels` has the equations.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Generator, Tensor
from torch.nn import Module, ModuleList

from fluxline.models.adapted.family import Family, Row
from fluxline.models.adapted.levels import TrainedLevels
from fluxline.models.adapted.vae import Vae
from fluxline.models.base import Network, Pictures, none_awaited, to_pixels
from fluxline.models.conditioning import Conditioning
from fluxline.models.glance import glance_of
from fluxline.models.spec import ModelSpec


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class AdaptedContext:
    """What one row needs in every evaluation."""

    conditioning: Conditioning
    width: int
    height: int
    guidance: float | None
    sigmas: tuple[float, ...]
    image_tokens: int

    @property
    def text_tokens(self) -> int:
        """L."""
        return self.conditioning.text.shape[0]

    def row(self, sigma: float) -> Row:
        """The row at one of its sigmas."""
        after = next((s for s in self.sigmas if s < sigma), 0.0)
        texts = {"text": self.conditioning.text, **self.conditioning.more}
        return Row(texts, self.width, self.height, self.guidance, sigma, after)


class AdaptedModel:
    """A model of one of diffusers' families. Thread: the engine's.

    weights: a fingerprint of all of them.
    """

    def __init__(self, spec: ModelSpec, *, family: Family, vae: Vae, weights: str) -> None:
        self.spec = spec
        self.family = family
        self.vae = vae
        self.weights = weights
        self.awaited_bytes: Callable[[], int] = none_awaited
        self.device, self.dtype = family.device, family.dtype
        levels = family.levels
        self._highest = levels.sigmas[-1] if isinstance(levels, TrainedLevels) else 1.0
        self._predicts = family.pipe.scheduler.config.get("prediction_type")

    def networks(self) -> tuple[Network, ...]:
        """Its encoders, the network by its blocks, and the VAE."""
        parts = [part for part in self.family.pipe.components.values() if isinstance(part, Module)]
        read = [part for part in parts if part not in (self.family.network, self.vae.vae)]
        return (
            *(Network(part, (part,)) for part in read),
            Network(self.family.network, _blocks_of(self.family.network)),
            Network(self.vae.vae, (self.vae.vae.encoder,)),
            Network(self.vae.vae, (self.vae.vae.decoder,)),
        )

    def compute_on(self, device: torch.device) -> None:
        """Compute there from now on."""
        self.device = self.family.device = device
        self.vae.compute_on(device)

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str]) -> list[Conditioning]:
        """Encode prompts with the family's encoders."""
        encoded = self.family.encode(prompts)
        none = torch.empty(0, device=self.device)
        return [
            Conditioning(
                texts["text"],
                none,
                self.family.is_too_long(prompt),
                {name: tensor for name, tensor in texts.items() if name != "text"},
            )
            for prompt, texts in zip(prompts, encoded, strict=True)
        ]

    def noise(self, generator: Generator, width: int, height: int) -> Tensor:
        """Tokens (N, C) float32 of a size on the grid, drawn as the family's pipeline draws."""
        h, w = height // self.vae.scale, width // self.vae.scale
        dtype = torch.float32 if self.family.draws_float32 else self.dtype
        latent = torch.randn((1, self.vae.channels, h, w), generator=generator, dtype=dtype)
        return self._pack(latent.float())[0].to(self.device)

    def context(
        self,
        conditioning: Conditioning,
        *,
        width: int,
        height: int,
        guidance: float | None,
        sigmas: Sequence[float],
        guide: None = None,
    ) -> AdaptedContext:
        """Prepare one row."""
        tokens = self.spec.image_tokens(width, height)
        return AdaptedContext(conditioning, width, height, guidance, tuple(sigmas), tokens)

    def guide(self, pictures: Pictures) -> None:
        """None: these models read no pictures themselves."""

    @torch.inference_mode()
    def evaluate(
        self, x: Tensor, sigmas: Sequence[float], contexts: Sequence[AdaptedContext]
    ) -> Tensor:
        """Velocity (R, N, C) float32 of tokens x (R, N, C), each row at its sigma and context.

        A network of diffusers takes latents of one size, and few take texts of two lengths: rows
        that differ in either share no forward.
        """
        groups: dict[tuple[int, int, int], list[int]] = {}
        for i, context in enumerate(contexts):
            length = 0 if self.family.mixes_lengths else context.text_tokens
            groups.setdefault((context.width, context.height, length), []).append(i)
        if len(groups) == 1:
            return self._velocity(x, [c.row(s) for s, c in zip(sigmas, contexts, strict=True)])
        velocity = torch.empty_like(x)
        for members in groups.values():
            rows = [contexts[i].row(sigmas[i]) for i in members]
            velocity[members] = self._velocity(x[members], rows)
        return velocity

    @torch.inference_mode()
    def decode(self, x: Tensor, width: int, height: int) -> Tensor:
        """Pictures uint8 (R, height, width, 3) on the CPU, of clean tokens x (R, N, C)."""
        return to_pixels(self.vae.decode(self._unpack(x, width, height)))

    @torch.inference_mode()
    def encode_picture(self, pixels: Tensor) -> Tensor:
        """Clean tokens (N, C) float32 of a picture uint8 (h, w, 3), whose sides are on the grid.

        The mean of what the VAE makes of it, so that the same picture is always the same tokens.
        """
        picture = pixels.to(self.device).float().permute(2, 0, 1)[None] / 127.5 - 1
        return self._pack(self.vae.encode(picture))[0]

    def encode_mask(self, mask: Tensor) -> Tensor:
        """Tokens (N, C) float32 of a mask uint8 (h, w): 1 where any pixel below is redrawn."""
        positions = F.max_pool2d((mask >= 128).float()[None, None], self.vae.scale)
        return self._pack(positions.expand(1, self.vae.channels, -1, -1))[0].to(self.device)

    @torch.inference_mode()
    def preview(self, x0: Tensor, width: int, height: int) -> Tensor:
        """What the VAE makes of clean tokens (N, C) averaged to a few positions: uint8 (h, w, 3).

        No map from latents to colours is known here for every family; a small decoding is.
        """
        latent = glance_of(self._unpack(x0[None], width, height), self.vae.scale)
        return to_pixels(self.vae.decode(latent))[0]

    def _velocity(self, x: Tensor, rows: Sequence[Row]) -> Tensor:
        """Of rows of one size: what the network predicts, said as a velocity of the flow."""
        latents = self._unpack(x, rows[0].width, rows[0].height)
        timesteps = [self.family.timestep(row.sigma) for row in rows]
        told = torch.tensor(timesteps, device=x.device)
        if not isinstance(self.family.levels, TrainedLevels):
            answer = self.family.predict(latents.to(self.dtype), told, rows)
            return self._pack(answer.float())
        sigmas = [min(row.sigma, self._highest) for row in rows]
        sigma = torch.tensor(sigmas, device=x.device).reshape(-1, 1, 1, 1)
        length = torch.tensor([math.hypot(1 - s, s) for s in sigmas], device=x.device)
        z = latents / length.reshape(-1, 1, 1, 1)
        noise = self.family.predict(z.to(self.dtype), told, rows).float()
        if self._predicts == "v_prediction":
            noise = ((1 - sigma) * noise + sigma * z) / length.reshape(-1, 1, 1, 1)
        return self._pack((noise - latents) / (1 - sigma))

    def _pack(self, latents: Tensor) -> Tensor:
        patch = self.family.patch
        return rearrange(latents, "r c (h p) (w q) -> r (h w) (c p q)", p=patch, q=patch)

    def _unpack(self, tokens: Tensor, width: int, height: int) -> Tensor:
        patch, h = self.family.patch, height // self.vae.scale // self.family.patch
        return rearrange(tokens, "r (h w) (c p q) -> r c (h p) (w q)", h=h, p=patch, q=patch)


def _blocks_of(network: Module) -> tuple[Module, ...]:
    """What a network of diffusers is made of: the members of its lists, in their order."""
    lists = [part for part in network.children() if isinstance(part, ModuleList)]
    return tuple(block for part in lists for block in part)
