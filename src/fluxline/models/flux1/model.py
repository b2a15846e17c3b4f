"""FLUX.1 as the engine asks for it: prompt to conditioning, tokens to velocity, tokens to picture.

Holds weights and nothing of any request. Everything that is the same in all evaluations of a row
(projected text, rotations, modulation vectors) is made once, in a `FluxContext`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from fluxline.models.banded import BandedVae
from fluxline.models.base import (
    Network,
    Pictures,
    Stage,
    Told,
    none_awaited,
    to_pixels,
    to_uint8,
)
from fluxline.models.conditioning import Conditioning
from fluxline.models.flux.adapters import AdapterReader, stage_of
from fluxline.models.flux1.controlnet import ControlNet
from fluxline.models.flux1.guide import NO_GUIDE, FluxGuide
from fluxline.models.flux1.latents import fold, image_ids, pack, text_ids, unpack
from fluxline.models.flux1.names import linears
from fluxline.models.flux1.redux import Redux
from fluxline.models.flux1.text import TextEncoders
from fluxline.models.flux1.transformer import Aside, FluxTransformer
from fluxline.models.spec import ModelSpec
from fluxline.ops.adapter import Learned


@dataclass(frozen=True, slots=True)
class PreviewMap:
    """A linear map from a latent position to RGB in [-1, 1]: weight (c, 3), bias (3,)."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class FluxContext:
    """What one row needs in every evaluation. Shapes: L text tokens, E sigmas, M vectors."""

    text: Tensor  # (L, D), and beside it as a ControlNet reads it: (L, 2 D)
    rope: Tensor  # (S, head_dim / 2)
    modulation: Tensor  # (E, M, D)
    evaluation: dict[float, int]  # sigma -> row of modulation
    guide: FluxGuide
    controlnet_modulation: Tensor | None = None  # (E, M', D)

    @property
    def text_tokens(self) -> int:
        """L, with what pictures add to it."""
        return self.text.shape[0]

    @property
    def image_tokens(self) -> int:
        """N, and those of pictures that are looked at."""
        return self.rope.shape[0] - self.text.shape[0]


class Flux1:
    """The FLUX.1 family. Thread: the engine's.

    vae: diffusers' AutoencoderKL. weights: a fingerprint of all of them. preview: None if nobody
    fitted a map for this VAE. redux: with it, what pictures show is read as text. controlnet: with
    it, pictures are drawn after a map.
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
        redux: Redux | None = None,
        controlnet: ControlNet | None = None,
    ) -> None:
        self.spec = spec
        self.transformer = transformer
        self.forward: Callable[..., Tensor] = transformer
        self.text = text
        self.vae = vae
        self.weights = weights
        self.awaited_bytes: Callable[[], int] = none_awaited
        self._preview, self._redux, self._controlnet = preview, redux, controlnet
        parameter = transformer.image_in.weight
        self.device, self.dtype = parameter.device, parameter.dtype
        self.vae_scale = 2 ** (len(vae.config.block_out_channels) - 1)
        self.adaptable: dict[str, nn.Module] = {"transformer": transformer, **text.adaptable}
        self._adapters = AdapterReader(linears(transformer.config), self.adaptable)
        self.banded = BandedVae(vae)
        self._rope = lru_cache(maxsize=64)(self._make_rope)

    @property
    def heads(self) -> int:
        """Of attention in a block, on all ranks together."""
        return self.transformer.config.heads

    @property
    def head_bytes(self) -> int:
        """Of a head's keys and values of a token."""
        return 2 * self.transformer.config.head_dim * self.dtype.itemsize

    def networks(self) -> tuple[Network, ...]:
        """What reads words and pictures, what draws, and the VAE."""
        trunks = [self.transformer, *([self._controlnet] if self._controlnet else ())]
        alone = self._controlnet is None  # else it listens to its blocks, and adds to the others'
        return (
            *self.text.networks(),
            *(self._redux.networks() if self._redux else ()),
            *(
                Network(trunk, trunk.blocks, once=("modulation",), is_chain=alone)
                for trunk in trunks
            ),
            *self.banded.networks(),
        )

    def compute_on(self, device: torch.device) -> None:
        """Compute there from now on."""
        self.device = self.text.device = device
        if self._redux is not None:
            self._redux.device = device
        self._rope.cache_clear()
        if self._preview is not None:
            weight, bias = self._preview.weight.to(device), self._preview.bias.to(device)
            self._preview = PreviewMap(weight, bias)

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str]) -> list[Conditioning]:
        """Encode prompts in one batch; the text comes out projected to the hidden width."""
        encoded = self.text.encode(prompts)
        text = self._embedded(encoded.sequence.to(self.device, self.dtype))
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
        guide: FluxGuide | None = None,
    ) -> FluxContext:
        """Prepare one row: all its modulation vectors in one product."""
        guide = guide or NO_GUIDE
        text = conditioning.text
        if guide.text is not None:
            text = torch.cat((text, guide.text))
        sigma = torch.tensor(sigmas, device=self.device)
        strength = None if guidance is None else torch.full_like(sigma, guidance)
        modulation = self.transformer.modulate(sigma, strength, conditioning.pooled[None])
        controlnet_modulation = None
        if self._controlnet is not None:
            controlnet_modulation = self._controlnet.modulate(
                sigma, strength, conditioning.pooled[None]
            )
        rope = self._rope(len(text), self._latent_size(width, height), guide.sizes)
        row_of = {value: row for row, value in enumerate(sigmas)}
        return FluxContext(text, rope, modulation, row_of, guide, controlnet_modulation)

    @torch.inference_mode()
    def guide(self, pictures: Pictures) -> FluxGuide:
        """What this variant reads of pictures; a plain one reads none."""
        guide = NO_GUIDE
        if pictures.canvas is not None and pictures.mask is not None:
            guide = FluxGuide(channels=self._gap(pictures.canvas, pictures.mask))
        if not pictures.references:
            return guide
        if self._redux is not None:
            text = self._redux.read(pictures.references)
            return replace(guide, text=self._embedded(text))
        seen = [self.encode_picture(picture).to(self.dtype) for picture in pictures.references]
        if self._controlnet is not None:
            return replace(guide, drawn_after=seen[0])
        if self.spec.references is None or not self.spec.references.in_sequence:
            return replace(guide, channels=seen[0])
        sizes = tuple(self._latent_size(p.shape[1], p.shape[0]) for p in pictures.references)
        return replace(guide, tokens=torch.cat(seen), sizes=sizes)

    @torch.inference_mode()
    def evaluate(
        self, x: Tensor, sigmas: Sequence[float], contexts: Sequence[FluxContext]
    ) -> Tensor:
        """Velocity (R, N, C) float32 of tokens x (R, N, C), each row at its sigma and context."""
        evaluations = [c.evaluation[s] for s, c in zip(sigmas, contexts, strict=True)]
        modulation = _of_evaluations([c.modulation for c in contexts], evaluations)
        text = torch.stack([c.text for c in contexts])
        rope = _rope_of(contexts)
        x = x.to(self.dtype)
        more: dict[str, Aside] = {}
        if self._controlnet is not None:
            text, text_aside = text.chunk(2, dim=2)
            more["aside"] = self._aside(x, text_aside, rope, contexts, evaluations)
        beside = beside_noise(x, [c.guide for c in contexts])
        velocity = self.forward(beside, text, modulation, rope, **more)
        return velocity[:, : x.shape[1]].float()

    def told(self, contexts: Sequence[FluxContext]) -> Told | None:
        """What the network is told of rows; None: of pictures beside the noise too."""
        guides = [c.guide for c in contexts]
        shown = any(g.channels is not None or g.tokens is not None for g in guides)
        if shown or self._controlnet is not None:
            return None

        def modulation(sigma: float) -> Tensor:
            evaluations = [c.evaluation[sigma] for c in contexts]
            return _of_evaluations([c.modulation for c in contexts], evaluations)

        return Told(torch.stack([c.text for c in contexts]), _rope_of(contexts), modulation)

    @torch.inference_mode()
    def decode(self, x: Tensor, width: int, height: int) -> Tensor:
        """Pictures uint8 (R, height, width, 3) on the CPU, of clean tokens x (R, N, C)."""
        return to_pixels(self.banded.decode(self._latent(x, width, height)))

    @torch.inference_mode()
    def encode_picture(self, pixels: Tensor) -> Tensor:
        """Clean tokens (N, C) float32 of a picture uint8 (h, w, 3), whose sides are on the grid.

        The mean of what the VAE makes of it, so that the same picture is always the same tokens.
        """
        return self._clean(pixels.to(self.device, self.vae.dtype) / 127.5 - 1)

    def encode_mask(self, mask: Tensor) -> Tensor:
        """Tokens (N, C) float32 of a mask uint8 (h, w): 1 where any pixel below is redrawn."""
        patches = F.max_pool2d((mask >= 128).float()[None, None], self.vae_scale)
        channels = self.vae.config.latent_channels
        return pack(patches.expand(1, channels, -1, -1))[0].to(self.device)

    @torch.inference_mode()
    def preview(self, x0: Tensor, width: int, height: int) -> Tensor:
        """What clean tokens (N, C) would look like: uint8 (h, w, 3).

        One px a latent position by the folder's map to colours; without one, a small decoding.
        """
        if self._preview is None:
            return to_pixels(self.banded.glance(self._latent(x0[None], width, height)))[0]
        latent = unpack(x0[None], *self._latent_size(width, height))[0].permute(1, 2, 0)
        rgb = latent.float() @ self._preview.weight + self._preview.bias
        return to_uint8(rgb).cpu()

    @property
    def guide_stages(self) -> frozenset[Stage]:
        """A Redux projects what pictures show as prompts are."""
        return frozenset(("encode",) if self._redux is not None else ())

    def read_adapter(
        self, tensors: Mapping[str, Tensor], about: Mapping[str, str]
    ) -> dict[str, list[Learned]]:
        """What a LoRA file has for each layer of the three networks. Raises LoadError."""
        return self._adapters.read(tensors, about)

    def stage_of(self, layer: str) -> Stage:
        """Which of the verbs above runs a layer."""
        return stage_of(layer)

    def _embedded(self, text: Tensor) -> Tensor:
        """Text (…, L, text_dim) as the network reads it, and beside it as a ControlNet does."""
        embedded = self.transformer.embed_text(text)
        if self._controlnet is None:
            return embedded
        return torch.cat((embedded, self._controlnet.embed_text(text)), dim=-1)

    def _aside(
        self,
        x: Tensor,
        text: Tensor,
        rope: Tensor,
        contexts: Sequence[FluxContext],
        evaluations: Sequence[int],
    ) -> Aside:
        """What the ControlNet says of this forward."""
        assert self._controlnet is not None
        vectors = [c.controlnet_modulation for c in contexts if c.controlnet_modulation is not None]
        maps = [c.guide.drawn_after for c in contexts if c.guide.drawn_after is not None]
        modulation = _of_evaluations(vectors, evaluations)
        said = self._controlnet(x, torch.stack(maps), text, modulation, rope)
        return self._controlnet.aside(said, self.transformer.config)

    def _clean(self, picture: Tensor) -> Tensor:
        """Clean tokens (N, C) float32 of a picture (height, width, 3) in [-1, 1]."""
        latent = self.banded.encode(picture.permute(2, 0, 1)[None])
        config = self.vae.config
        return pack((latent - (config.shift_factor or 0.0)) * config.scaling_factor)[0]

    def _gap(self, canvas: Tensor, mask: Tensor) -> Tensor:
        """Channels (N, C + 256): clean tokens of a picture, grey where it is redrawn, and the mask
        folded."""
        redrawn = (mask >= 128).to(self.device, self.vae.dtype)
        kept = (canvas.to(self.device, self.vae.dtype) / 127.5 - 1) * (1 - redrawn[..., None])
        return torch.cat((self._clean(kept), fold(redrawn, self.vae_scale)), -1).to(self.dtype)

    def _latent(self, x: Tensor, width: int, height: int) -> Tensor:
        """What the VAE draws clean tokens (R, N, C) from: (R, c, h, w)."""
        config = self.vae.config
        latent = unpack(x, *self._latent_size(width, height))
        scaled: Tensor = latent / config.scaling_factor + (config.shift_factor or 0.0)
        return scaled

    def _latent_size(self, width: int, height: int) -> tuple[int, int]:
        return height // self.vae_scale, width // self.vae_scale

    def _make_rope(
        self, text_tokens: int, drawn: tuple[int, int], seen: tuple[tuple[int, int], ...]
    ) -> Tensor:
        pictures = [image_ids(*size, picture=1) for size in seen]
        ids = torch.cat((text_ids(text_tokens), image_ids(*drawn), *pictures))
        return self.transformer.rope(ids).to(self.device)  # float64 angles: not on every device


def _of_evaluations(vectors: Sequence[Tensor], evaluations: Sequence[int]) -> Tensor:
    """Modulation vectors (R, M, D) of each row's evaluation."""
    return torch.stack([v[number] for v, number in zip(vectors, evaluations, strict=True)])


def _rope_of(contexts: Sequence[FluxContext]) -> Tensor:
    """Rotations (R or 1, S, head_dim / 2) of rows: most often all have the same."""
    first = contexts[0].rope
    if all(c.rope is first for c in contexts):
        return first[None]
    return torch.stack([c.rope for c in contexts])


def beside_noise(x: Tensor, guides: Sequence[FluxGuide]) -> Tensor:
    """Tokens x (R, N, C) of a forward, with what stands beside them: (R, N + K, C + C')."""
    channels = [guide.channels for guide in guides if guide.channels is not None]
    tokens = [guide.tokens for guide in guides if guide.tokens is not None]
    x = torch.cat((x, torch.stack(channels)), dim=2) if channels else x
    return torch.cat((x, torch.stack(tokens)), dim=1) if tokens else x
