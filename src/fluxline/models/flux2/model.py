"""FLUX.2 as the engine asks for it: prompt to conditioning, tokens to velocity, tokens to picture.

Holds weights and nothing of any request. Everything that is the same in all evaluations of a row
(projected text, rotations, modulation vectors, the pictures it looks at) is made once, in a
`Flux2Context`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
)
from fluxline.models.conditioning import Conditioning
from fluxline.models.flux.adapters import AdapterReader, stage_of
from fluxline.models.flux2.latents import (
    PATCH,
    Statistics,
    image_ids,
    pack,
    reference_ids,
    text_ids,
    unpack,
)
from fluxline.models.flux2.names import linears
from fluxline.models.flux2.text import TextEncoder
from fluxline.models.flux2.transformer import Flux2Transformer
from fluxline.models.spec import ModelSpec
from fluxline.ops.adapter import Learned

Size = tuple[int, int]  # (h, w) in tokens


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class Flux2Guide:
    """Pictures to draw after: tokens that stand in the image's sequence, or a memory of them."""

    tokens: Tensor  # (T, C)
    sizes: tuple[Size, ...]
    memory: tuple[tuple[Tensor, Tensor], ...] = ()  # a block: two of (1, H, T, head_dim)

    @property
    def bytes(self) -> int:
        """Memory it holds."""
        return self.tokens.nbytes + sum(k.nbytes + v.nbytes for k, v in self.memory)


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class Flux2Context:
    """What one row needs in every evaluation. Shapes: L text tokens, E sigmas, M vectors."""

    text: Tensor  # (L, D)
    rope: Tensor  # (S, head_dim / 2)
    modulation: Tensor  # (E, M, D)
    evaluation: dict[float, int]  # sigma -> row of modulation
    guide: Flux2Guide | None

    @property
    def memory(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """Of references, in their place."""
        return self.guide.memory if self.guide else ()

    @property
    def references(self) -> Tensor | None:
        """Their tokens (T, C), where they stand in the sequence."""
        return self.guide.tokens if self.guide and not self.guide.memory else None

    @property
    def text_tokens(self) -> int:
        """L."""
        return self.text.shape[0]

    @property
    def image_tokens(self) -> int:
        """N."""
        beside = 0 if self.references is None else self.references.shape[0]
        return self.rope.shape[0] - self.text.shape[0] - beside


class Flux2:
    """The FLUX.2 family. Thread: the engine's.

    vae: diffusers' AutoencoderKLFlux2. weights: a fingerprint of all of them. remembers: it was
    trained to look at references once, and not anew at every noise level.
    """

    def __init__(
        self,
        spec: ModelSpec,
        *,
        transformer: Flux2Transformer,
        text: TextEncoder,
        vae: Any,  # diffusers is untyped
        weights: str,
        remembers: bool = False,
    ) -> None:
        self.spec = spec
        self.transformer = transformer
        self.forward: Callable[..., Tensor] = transformer
        self.text = text
        self.vae = vae
        self.weights = weights
        self.awaited_bytes: Callable[[], int] = none_awaited
        self.remembers = remembers
        parameter = transformer.image_in.weight
        self.device, self.dtype = parameter.device, parameter.dtype
        self._statistics = _statistics(vae)
        self.adaptable: dict[str, nn.Module] = {"transformer": transformer}
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
        """The text encoder, the transformer and the VAE."""
        blocks = self.transformer.blocks
        return (
            self.text.network(),
            Network(self.transformer, blocks, is_chain=True),
            *self.banded.networks(),
        )

    def compute_on(self, device: torch.device) -> None:
        """Compute there from now on."""
        self.device = device
        self._statistics = self._statistics.at(device)
        self._rope.cache_clear()

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str]) -> list[Conditioning]:
        """Encode prompts in one batch; the text comes out projected to the hidden width."""
        encoded = self.text.encode(prompts)
        text = self.transformer.embed_text(encoded.features.to(self.device, self.dtype))
        nothing = text.new_empty(0)  # no pooled vector
        return [
            Conditioning(text[i].clone(), nothing, truncated)
            for i, truncated in enumerate(encoded.truncated)
        ]

    def noise(self, generator: Generator, width: int, height: int) -> Tensor:
        """Tokens (N, C) float32 of a size on the grid, from a CPU generator.

        Drawn as diffusers draws them: channel by channel, (1, C, h, w) in the model's dtype.
        """
        h, w = self._size(width, height)
        channels = self.transformer.config.out_channels
        noise = torch.randn((1, channels, h, w), generator=generator, dtype=self.dtype)
        return noise[0].flatten(1).T.float().to(self.device)

    @torch.inference_mode()
    def guide(self, pictures: Pictures) -> Flux2Guide | None:
        """The tokens of the pictures that are looked at, or what every block makes of them."""
        if not pictures.references:
            return None
        tokens = torch.cat([self.encode_picture(pixels) for pixels in pictures.references])
        tokens = tokens.to(self.dtype)
        sizes = [self._size(p.shape[1], p.shape[0]) for p in pictures.references]
        if not self.remembers:
            return Flux2Guide(tokens, tuple(sizes))
        modulation = self.transformer.modulate(torch.zeros(1, device=self.device), None)
        rope = self.transformer.rope(reference_ids(sizes)).to(self.device)
        memory = self.transformer.remember(tokens[None], modulation, rope[None])
        return Flux2Guide(tokens, tuple(sizes), tuple(memory))

    @torch.inference_mode()
    def context(
        self,
        conditioning: Conditioning,
        *,
        width: int,
        height: int,
        guidance: float | None,
        sigmas: Sequence[float],
        guide: Flux2Guide | None = None,
    ) -> Flux2Context:
        """Prepare one row: all its modulation vectors in one product."""
        sigma = torch.tensor(sigmas, device=self.device)
        strength = None if guidance is None else torch.full_like(sigma, guidance)
        modulation = self.transformer.modulate(sigma, strength)
        beside = guide.sizes if guide and not guide.memory else ()
        rope = self._rope(conditioning.text.shape[0], self._size(width, height), beside)
        row_of = {value: row for row, value in enumerate(sigmas)}
        return Flux2Context(conditioning.text, rope, modulation, row_of, guide)

    @torch.inference_mode()
    def evaluate(
        self, x: Tensor, sigmas: Sequence[float], contexts: Sequence[Flux2Context]
    ) -> Tensor:
        """Velocity (R, N, C) float32 of tokens x (R, N, C), each row at its sigma and context."""
        modulation = _modulation_of(contexts, sigmas)
        text = torch.stack([c.text for c in contexts])
        rope = _rope_of(contexts)
        seen = [c.references for c in contexts if c.references is not None]
        together = x.to(self.dtype)
        if seen:  # by all rows, as many
            together = torch.cat((together, torch.stack(seen)), dim=1)
        memory = _side_by_side([c.memory for c in contexts]) if contexts[0].memory else None
        velocity = self.forward(together, text, modulation, rope, memory=memory)
        return velocity[:, : x.shape[1]].float()

    def told(self, contexts: Sequence[Flux2Context]) -> Told | None:
        """What the network is told of rows; None: of pictures to draw after, too."""
        if any(c.guide is not None for c in contexts):
            return None
        text = torch.stack([c.text for c in contexts])
        rows = len(contexts)
        return Told(text, _rope_of(contexts), lambda s: _modulation_of(contexts, [s] * rows))

    @torch.inference_mode()
    def decode(self, x: Tensor, width: int, height: int) -> Tensor:
        """Pictures uint8 (R, height, width, 3) on the CPU, of clean tokens x (R, N, C)."""
        return to_pixels(self.banded.decode(self._latent(x, width, height)))

    @torch.inference_mode()
    def encode_picture(self, pixels: Tensor) -> Tensor:
        """Clean tokens (N, C) float32 of a picture uint8 (h, w, 3), whose sides are on the grid.

        The mean of what the VAE makes of it, so that the same picture is always the same tokens.
        """
        picture = pixels.to(self.device, self.vae.dtype).permute(2, 0, 1)[None] / 127.5 - 1
        return self._statistics.normed(pack(self.banded.encode(picture))[0])

    def encode_mask(self, mask: Tensor) -> Tensor:
        """Tokens (N, C) float32 of a mask uint8 (h, w): 1 where any pixel below is redrawn."""
        scale = self.spec.grid // PATCH
        patches = F.max_pool2d((mask >= 128).float()[None, None], scale)
        channels = self.vae.config.latent_channels
        return pack(patches.expand(1, channels, -1, -1))[0].to(self.device)

    @torch.inference_mode()
    def preview(self, x0: Tensor, width: int, height: int) -> Tensor:
        """A small decoding of clean tokens (N, C): uint8 (h, w, 3)."""
        return to_pixels(self.banded.glance(self._latent(x0[None], width, height)))[0]

    @property
    def guide_stages(self) -> frozenset[Stage]:
        """What is remembered of references, the whole network made of them."""
        return frozenset(("context", "evaluate") if self.remembers else ())

    def read_adapter(
        self, tensors: Mapping[str, Tensor], about: Mapping[str, str]
    ) -> dict[str, list[Learned]]:
        """What a LoRA file has for each layer of the transformer. Raises LoadError."""
        return self._adapters.read(tensors, about)

    def stage_of(self, layer: str) -> Stage:
        """Which of the verbs above runs a layer."""
        return stage_of(layer)

    def _latent(self, x: Tensor, width: int, height: int) -> Tensor:
        """What the VAE draws clean tokens (R, N, C) from: (R, c, h, w)."""
        return unpack(self._statistics.restored(x), *self._size(width, height))

    def _size(self, width: int, height: int) -> Size:
        return height // self.spec.grid, width // self.spec.grid

    def _make_rope(self, text_tokens: int, size: Size, beside: tuple[Size, ...]) -> Tensor:
        ids = [text_ids(text_tokens), image_ids(*size)]
        if beside:
            ids.append(reference_ids(beside))
        return self.transformer.rope(torch.cat(ids)).to(self.device)  # float64: not everywhere


def _modulation_of(contexts: Sequence[Flux2Context], sigmas: Sequence[float]) -> Tensor:
    """Modulation vectors (R, M, D) of each row at its sigma."""
    told = zip(sigmas, contexts, strict=True)
    return torch.stack([c.modulation[c.evaluation[sigma]] for sigma, c in told])


def _rope_of(contexts: Sequence[Flux2Context]) -> Tensor:
    """Rotations (R or 1, S, head_dim / 2) of rows: most often all have the same."""
    first = contexts[0].rope
    if all(c.rope is first for c in contexts):
        return first[None]
    return torch.stack([c.rope for c in contexts])


def _side_by_side(
    memories: Sequence[Sequence[tuple[Tensor, Tensor]]],
) -> Iterator[tuple[Tensor, Tensor]]:
    """What rows remember, one block after another: of one at a time there are copies."""
    for blocks in zip(*memories, strict=True):
        keys, values = zip(*blocks, strict=True)
        yield torch.cat(keys), torch.cat(values)


def _statistics(vae: Any) -> Statistics:
    """What the VAE's batch norm learned of its tokens."""
    mean, variance = vae.bn.running_mean.float(), vae.bn.running_var.float()
    return Statistics(mean, (variance + vae.config.batch_norm_eps).sqrt())
