"""The FLUX.2 transformer: velocity of every image token, given noise level, prompt and pictures.

FLUX.1's two kinds of block, with less in them: no biases, gated MLPs (SwiGLU), no pooled prompt.
*One* modulation serves all double blocks and one all single blocks, so that 17 vectors say to the
whole network what the noise level is. Positions have four axes: time, row, column, word. Pictures
to draw after stand in the image's sequence, each at a time of its own, and are read but not drawn.
One variant (klein KV) reads them once: they look at nothing but themselves, so what blocks make of
them is the same in every evaluation, and is remembered.
Source: black-forest-labs/flux2, model.py; Shazeer 2020, "GLU Variants Improve Transformer".

It knows tensors and nothing else: not files, devices, requests or steps. Rows of a batch are
independent: each has its own sigma, guidance, prompt and positions.

Projections that read the same input are one matrix here (Q, K, V; all modulation), which is no
number's difference: the vectors of every evaluation of a request come from one product before the
first evaluation.

Shapes: R rows, N image tokens, T reference tokens, L text tokens, S = L + N + T, C channels of a
token, D hidden, F inner width of an MLP, H heads, E evaluations, M modulation vectors.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fluxline.ops.attention import Attend, attend
from fluxline.ops.bound import BoundBlock, bind_double, bind_single
from fluxline.ops.heads import attend_rotated, split_heads
from fluxline.ops.norm import modulated_norm
from fluxline.ops.rope import rope_table
from fluxline.ops.timesteps import timestep_features

PER_STREAM = 6  # vectors of a double block's stream: shift, scale, gate for attention and MLP
PER_SINGLE = 3  # of a single block: shift, scale, gate
PER_FINAL = 2  # of the last norm: scale, shift
VECTORS = 2 * PER_STREAM + PER_SINGLE + PER_FINAL  # M: image, text, single, final

Memory = Iterable[tuple[Tensor, Tensor]]
"""Rotated keys and values (R, H, T, head_dim) of references, one block after another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flux2Config:
    """The numbers that make a FLUX.2: klein and dev differ in size and in `guidance`."""

    in_channels: int  # C: 128 = 32 latent channels of a 2 x 2 patch
    out_channels: int
    depth_double: int
    depth_single: int
    head_dim: int
    heads: int
    inner: int  # F
    text_dim: int  # width of the text encoder's features: three layers side by side
    guidance: bool  # has a guidance embedding (dev)
    axes: tuple[int, ...]  # channels of the head given to each position axis
    theta: float  # base of the wavelengths of positions

    @property
    def hidden(self) -> int:
        """D, the width of a token inside."""
        return self.heads * self.head_dim


class Flux2Transformer(nn.Module):
    """The whole network. `forward` is one evaluation of R rows; the rest is done once a request."""

    def __init__(self, config: Flux2Config) -> None:
        super().__init__()
        self.config = config
        d = config.hidden
        self.image_in = nn.Linear(config.in_channels, d, bias=False)
        self.text_in = nn.Linear(config.text_dim, d, bias=False)
        self.time_in = Embedder(256, d)
        self.guidance_in = Embedder(256, d) if config.guidance else None
        self.modulation = nn.Linear(d, VECTORS * d, bias=False)
        self.double_blocks = nn.ModuleList(DoubleBlock(config) for _ in range(config.depth_double))
        self.single_blocks = nn.ModuleList(SingleBlock(config) for _ in range(config.depth_single))
        self.image_out = nn.Linear(d, config.out_channels, bias=False)

    def embed_text(self, text: Tensor) -> Tensor:
        """Project text features (R, L, text_dim) to (R, L, D): the same in every evaluation."""
        embedded: Tensor = self.text_in(text)
        return embedded

    def modulate(self, sigma: Tensor, guidance: Tensor | None) -> Tensor:
        """Modulation vectors (E, M, D) of E evaluations, in one product.

        sigma: (E,) in [0, 1]. guidance: (E,), needed by dev, unread by klein.
        """
        dtype = self.image_in.weight.dtype
        condition = self.time_in(timestep_features(sigma).to(dtype))
        if self.guidance_in is not None:
            if guidance is None:
                raise ValueError("this FLUX.2 has a guidance embedding: guidance is needed")
            condition = condition + self.guidance_in(timestep_features(guidance).to(dtype))
        vectors: Tensor = self.modulation(F.silu(condition))
        return vectors.reshape(len(vectors), VECTORS, self.config.hidden)

    @property
    def blocks(self) -> tuple[nn.Module, ...]:
        """All of them, in the order in which they are walked."""
        return (*self.double_blocks, *self.single_blocks)

    def rope(self, ids: Tensor) -> Tensor:
        """Rotations (..., S, head_dim / 2) of positions (..., S, 4): text, image, references."""
        return rope_table(ids, self.config.axes, self.config.theta)

    def forward(
        self,
        x: Tensor,
        text: Tensor,
        modulation: Tensor,
        rope: Tensor,
        memory: Memory | None = None,
        attend: Attend = attend,
    ) -> Tensor:
        """Velocity (R, N, C) of image tokens x (R, N, C), clean ones of references after them.

        text: (R, L, D) from `embed_text`. modulation: (R, M, D) from `modulate`.
        rope: (R or 1, S, head_dim / 2) from `rope`. memory: from `remember`, in place of
        references.
        """
        vectors = modulation.unsqueeze(2).unbind(1)  # M x (R, 1, D)
        attends: Iterable[Attend] = repeat(attend)
        if memory is not None:
            attends = (attend_also(attend, keys, values) for keys, values in memory)
        both = self._think(x, text, vectors, rope, attends)
        return self.leave(both[:, text.shape[1] :], modulation)

    def enter(self, x: Tensor) -> Tensor:
        """Image tokens x (R, N, C) as the blocks read them: (R, N, D)."""
        image: Tensor = self.image_in(x)
        return image

    def bound_blocks(self, modulation: Tensor) -> list[BoundBlock]:
        """All blocks in the order in which they are walked, for one evaluation's (R, M, D)."""
        for_image, for_text, for_both = _told(modulation.unsqueeze(2).unbind(1))
        double = [bind_double(block, for_image, for_text) for block in self.double_blocks]
        return double + [bind_single(block, for_both) for block in self.single_blocks]

    def leave(self, image: Tensor, modulation: Tensor) -> Tensor:
        """Velocity (R, N, C) of image tokens (R, N, D) after all blocks."""
        scale, shift = modulation[:, -PER_FINAL:].unsqueeze(2).unbind(1)
        velocity: Tensor = self.image_out(modulated_norm(image, shift, scale))
        return velocity

    def remember(
        self, references: Tensor, modulation: Tensor, rope: Tensor, attend: Attend = attend
    ) -> list[tuple[Tensor, Tensor]]:
        """What every block makes of references (R, T, C) that look at nothing but themselves.

        modulation: (R, M, D) from `modulate`, of pictures without noise. rope: of them alone.
        """
        memory: list[tuple[Tensor, Tensor]] = []

        def attend_and_keep(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            memory.append((k.contiguous(), v.contiguous()))  # parts of something larger
            return attend(q, k, v)

        nobody = modulation[:, :0]  # (R, 0, D): no text
        vectors = modulation.unsqueeze(2).unbind(1)
        self._think(references, nobody, vectors, rope, repeat(attend_and_keep))
        return memory

    def _think(
        self,
        x: Tensor,
        text: Tensor,
        vectors: Sequence[Tensor],
        rope: Tensor,
        attends: Iterable[Attend],
    ) -> Tensor:
        """Text and image (R, S, D) after all blocks; each block attends in its own way."""
        ways = iter(attends)
        for_image, for_text, for_both = _told(vectors)
        image = self.enter(x)
        for block in self.double_blocks:
            image, text = block(image, text, for_image, for_text, rope, next(ways))
        both = torch.cat((text, image), dim=1)  # (R, S, D)
        for block in self.single_blocks:
            both = block(both, for_both, rope, next(ways))
        return both


class Embedder(nn.Module):
    """Two linear layers that lift a vector to the hidden width."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.into = nn.Linear(width, hidden, bias=False)
        self.out = nn.Linear(hidden, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(E, width) to (E, D)."""
        lifted: Tensor = self.out(F.silu(self.into(x)))
        return lifted


class Stream(nn.Module):
    """One side of a double block, text or image: all its weights."""

    def __init__(self, config: Flux2Config) -> None:
        super().__init__()
        d = config.hidden
        self.heads = config.heads
        self.to_qkv = nn.Linear(d, 3 * d, bias=False)
        self.qk_norm = nn.Parameter(torch.ones(2, config.head_dim))
        self.to_out = nn.Linear(d, d, bias=False)
        self.mlp_in = nn.Linear(d, 2 * config.inner, bias=False)  # gate, then what it lets through
        self.mlp_out = nn.Linear(config.inner, d, bias=False)

    def project(self, x: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Normed queries and keys (R, S, 2, H, head_dim), and values (R, S, H, head_dim)."""
        qkv = self.to_qkv(modulated_norm(x, shift, scale))
        return split_heads(qkv, self.heads, self.qk_norm)

    def absorb(self, x: Tensor, attended: Tensor, vectors: Sequence[Tensor]) -> Tensor:
        """Add what attention brought, then the MLP's answer to it, each through its gate."""
        gate, mlp_shift, mlp_scale, mlp_gate = vectors
        x = torch.addcmul(x, gate, self.to_out(attended))
        inner = swiglu(self.mlp_in(modulated_norm(x, mlp_shift, mlp_scale)))
        return torch.addcmul(x, mlp_gate, self.mlp_out(inner))


class DoubleBlock(nn.Module):
    """Text and image, each with weights of its own, attending together."""

    def __init__(self, config: Flux2Config) -> None:
        super().__init__()
        self.image = Stream(config)
        self.text = Stream(config)

    def forward(
        self,
        image: Tensor,
        text: Tensor,
        for_image: Sequence[Tensor],
        for_text: Sequence[Tensor],
        rope: Tensor,
        attend: Attend,
    ) -> tuple[Tensor, Tensor]:
        """image (R, N + T, D) and text (R, L, D), one block further."""
        text_qk, text_v = self.text.project(text, *for_text[:2])
        image_qk, image_v = self.image.project(image, *for_image[:2])
        qk = torch.cat((text_qk, image_qk), dim=1)
        v = torch.cat((text_v, image_v), dim=1)
        attended = attend_rotated(qk, v, rope, attend)  # (R, S, D)
        length = text.shape[1]
        image = self.image.absorb(image, attended[:, length:], for_image[2:])
        text = self.text.absorb(text, attended[:, :length], for_text[2:])
        return image, text


class SingleBlock(nn.Module):
    """Text and image as one sequence; attention and MLP read the same norm, side by side."""

    def __init__(self, config: Flux2Config) -> None:
        super().__init__()
        d = config.hidden
        self.heads = config.heads
        self.proj_in = nn.Linear(d, 3 * d + 2 * config.inner, bias=False)  # Q, K, V; the MLP's
        self.qk_norm = nn.Parameter(torch.ones(2, config.head_dim))
        self.proj_out = nn.Linear(d + config.inner, d, bias=False)

    def forward(self, x: Tensor, vectors: Sequence[Tensor], rope: Tensor, attend: Attend) -> Tensor:
        """x (R, S, D), one block further."""
        shift, scale, gate = vectors
        inner = self.proj_in(modulated_norm(x, shift, scale))
        qkv_width = 3 * self.heads * self.qk_norm.shape[1]
        qkv, mlp = inner[..., :qkv_width], inner[..., qkv_width:]
        qk, v = split_heads(qkv, self.heads, self.qk_norm)
        attended = attend_rotated(qk, v, rope, attend)
        return torch.addcmul(x, gate, self.proj_out(torch.cat((attended, swiglu(mlp)), dim=-1)))


def _told(vectors: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]:
    """An evaluation's vectors for image and text of double blocks, and for single blocks."""
    double, single = vectors[: 2 * PER_STREAM], vectors[2 * PER_STREAM : -PER_FINAL]
    return double[:PER_STREAM], double[PER_STREAM:], single


def attend_also(attend: Attend, keys: Tensor, values: Tensor) -> Attend:
    """Attend to these keys and values (R, H, T, head_dim) besides one's own."""

    def attend_to_all(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, torch.cat((k, keys), dim=2), torch.cat((v, values), dim=2))

    return attend_to_all


def swiglu(x: Tensor) -> Tensor:
    """The first half of the last axis, through SiLU, lets the second through: (..., 2 F) to F."""
    gate, value = x.chunk(2, dim=-1)
    return F.silu(gate) * value
