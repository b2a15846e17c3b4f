"""The FLUX.1 transformer: velocity of every image token, given noise level and prompt.

A multimodal diffusion transformer with two kinds of block. A *double* block keeps weights of its
own for text and image and lets them meet in attention; a *single* block runs both as one sequence,
attention and MLP side by side. Source: black-forest-labs/flux, model.py and modules/layers.py;
Esser et al. 2024, "Scaling Rectified Flow Transformers"; Dehghani et al. 2023 (parallel blocks).

It knows tensors and nothing else: not files, devices, requests or steps. Rows of a batch are
independent: each has its own sigma, guidance, prompt and positions.

Two things differ from the reference, neither of them a number:
projections that read the same input are one matrix (Q, K, V; in a single block the MLP too), and
so are the modulation layers of *all* blocks, which see only (sigma, guidance, prompt): the
vectors of every evaluation of a request come from one product before the first evaluation.

Shapes: R rows, N image tokens, L text tokens, S = L + N, C channels of a token, D hidden,
H heads, E evaluations, M modulation vectors.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fluxline.ops.attention import Attend, attend
from fluxline.ops.bound import BoundBlock, bind_double, bind_single
from fluxline.ops.heads import attend_rotated, split_heads
from fluxline.ops.norm import modulated_norm
from fluxline.ops.rope import rope_table
from fluxline.ops.timesteps import timestep_features

PER_STREAM = 6  # vectors a double block's stream takes: shift, scale, gate for attention and MLP
PER_SINGLE = 3  # a single block: shift, scale, gate
PER_FINAL = 2  # the last norm: scale, shift

Aside = Callable[[int, Tensor], Tensor | None]
"""What somebody says to a block's number and the image tokens (R, N, D) after it: what is to be
added to them, or nothing. Double blocks come first."""


def silent(number: int, image: Tensor) -> None:
    """Say nothing aside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FluxConfig:
    """The numbers that make a FLUX.1: dev and schnell differ only in `guidance`."""

    in_channels: int  # C: 64 = 16 latent channels of a 2 x 2 patch; 384 in Fill
    out_channels: int
    depth_double: int
    depth_single: int
    head_dim: int
    heads: int
    text_dim: int  # width of the T5 sequence
    pooled_dim: int  # width of the CLIP vector
    guidance: bool  # has a guidance embedding (dev-class)
    axes: tuple[int, ...]  # channels of the head given to each position axis

    @property
    def hidden(self) -> int:
        """D, the width of a token inside."""
        return self.heads * self.head_dim

    @property
    def vectors(self) -> int:
        """M, the modulation vectors of one evaluation."""
        return self.block_vectors + PER_FINAL

    @property
    def block_vectors(self) -> int:
        """Those of them that the blocks take."""
        return 2 * PER_STREAM * self.depth_double + PER_SINGLE * self.depth_single


class Trunk(nn.Module):
    """The network without its answer: what it reads, and the blocks.

    vectors: how many modulation vectors an evaluation takes.
    """

    def __init__(self, config: FluxConfig, vectors: int) -> None:
        super().__init__()
        self.config, self.vectors = config, vectors
        d = config.hidden
        self.image_in = nn.Linear(config.in_channels, d)
        self.text_in = nn.Linear(config.text_dim, d)
        self.time_in = Embedder(256, d)
        self.pooled_in = Embedder(config.pooled_dim, d)
        self.guidance_in = Embedder(256, d) if config.guidance else None
        self.modulation = nn.Linear(d, vectors * d)
        self.double_blocks = nn.ModuleList(
            DoubleBlock(d, config.heads) for _ in range(config.depth_double)
        )
        self.single_blocks = nn.ModuleList(
            SingleBlock(d, config.heads) for _ in range(config.depth_single)
        )

    def embed_text(self, text: Tensor) -> Tensor:
        """Project a T5 sequence (R, L, text_dim) to (R, L, D): the same in every evaluation."""
        embedded: Tensor = self.text_in(text)
        return embedded

    def modulate(self, sigma: Tensor, guidance: Tensor | None, pooled: Tensor) -> Tensor:
        """Modulation vectors (E, M, D) of E evaluations, in one product.

        sigma: (E,) in [0, 1]. guidance: (E,), needed by a dev-class model, unread by others.
        pooled: (E, pooled_dim) or (1, pooled_dim), the CLIP vector.
        """
        condition = self.time_in(timestep_features(sigma).to(pooled.dtype))
        if self.guidance_in is not None:
            if guidance is None:
                raise ValueError("this FLUX has a guidance embedding: guidance is needed")
            condition = condition + self.guidance_in(timestep_features(guidance).to(pooled.dtype))
        condition = condition + self.pooled_in(pooled)
        vectors: Tensor = self.modulation(F.silu(condition))
        return vectors.reshape(len(vectors), self.vectors, self.config.hidden)

    @property
    def blocks(self) -> tuple[nn.Module, ...]:
        """All of them, in the order in which they are walked."""
        return (*self.double_blocks, *self.single_blocks)

    def rope(self, ids: Tensor) -> Tensor:
        """Rotations (..., S, head_dim / 2) of positions ids (..., S, 3), text first."""
        return rope_table(ids, self.config.axes)

    def walk(
        self,
        image: Tensor,
        text: Tensor,
        vectors: Sequence[Tensor],
        rope: Tensor,
        attend: Attend,
        aside: Aside,
    ) -> Tensor:
        """Image tokens (R, N, D) after all blocks. vectors: M times (R, 1, D)."""
        for_blocks, length = self._for_blocks(vectors), text.shape[1]
        for number, block in enumerate(self.double_blocks):
            image, text = block(image, text, *next(for_blocks), rope, attend)
            if (added := aside(number, image)) is not None:
                image = image + added
        both = torch.cat((text, image), dim=1)  # (R, S, D)
        for number, block in enumerate(self.single_blocks, start=len(self.double_blocks)):
            both = block(both, *next(for_blocks), rope, attend)
            if (added := aside(number, both[:, length:])) is not None:
                both[:, length:] += added
        return both[:, length:]

    def bound_blocks(self, modulation: Tensor) -> list[BoundBlock]:
        """All blocks in the order in which they are walked, for one evaluation's (R, M, D)."""
        for_blocks = self._for_blocks(modulation.unsqueeze(2).unbind(1))
        double = [bind_double(block, *next(for_blocks)) for block in self.double_blocks]
        return double + [bind_single(block, *next(for_blocks)) for block in self.single_blocks]

    def _for_blocks(self, vectors: Sequence[Tensor]) -> Iterator[tuple[Sequence[Tensor], ...]]:
        """Each block's vectors: a double block's for image and text, a single block's."""
        rest = iter(vectors)
        for _ in self.double_blocks:
            yield tuple(islice(rest, PER_STREAM)), tuple(islice(rest, PER_STREAM))
        for _ in self.single_blocks:
            yield (tuple(islice(rest, PER_SINGLE)),)


class FluxTransformer(Trunk):
    """The whole network. `forward` is one evaluation of R rows; the rest is done once a request."""

    def __init__(self, config: FluxConfig) -> None:
        super().__init__(config, config.vectors)
        self.image_out = nn.Linear(config.hidden, config.out_channels)

    def forward(
        self,
        x: Tensor,
        text: Tensor,
        modulation: Tensor,
        rope: Tensor,
        attend: Attend = attend,
        aside: Aside = silent,
    ) -> Tensor:
        """Velocity (R, N, C) of image tokens x (R, N, C).

        text: (R, L, D) from `embed_text`. modulation: (R, M, D) from `modulate`.
        rope: (R or 1, S, head_dim / 2) from `rope`. aside: what a ControlNet adds.
        """
        vectors = modulation.unsqueeze(2).unbind(1)  # M x (R, 1, D)
        image = self.walk(self.enter(x), text, vectors, rope, attend, aside)
        return self.leave(image, modulation)

    def enter(self, x: Tensor) -> Tensor:
        """Image tokens x (R, N, C) as the blocks read them: (R, N, D)."""
        image: Tensor = self.image_in(x)
        return image

    def leave(self, image: Tensor, modulation: Tensor) -> Tensor:
        """Velocity (R, N, C) of image tokens (R, N, D) after all blocks."""
        scale, shift = modulation[:, -PER_FINAL:].unsqueeze(2).unbind(1)
        velocity: Tensor = self.image_out(modulated_norm(image, shift, scale))
        return velocity


class Embedder(nn.Module):
    """Two linear layers that lift a vector to the hidden width."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.into = nn.Linear(width, hidden)
        self.out = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """(E, width) to (E, D)."""
        lifted: Tensor = self.out(F.silu(self.into(x)))
        return lifted


class Stream(nn.Module):
    """One side of a double block, text or image: all its weights."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(hidden, 3 * hidden)
        self.qk_norm = nn.Parameter(torch.ones(2, hidden // heads))
        self.to_out = nn.Linear(hidden, hidden)
        self.mlp_in = nn.Linear(hidden, 4 * hidden)
        self.mlp_out = nn.Linear(4 * hidden, hidden)

    def project(self, x: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Normed queries and keys (R, S, 2, H, head_dim), and values (R, S, H, head_dim)."""
        qkv = self.to_qkv(modulated_norm(x, shift, scale))
        return split_heads(qkv, self.heads, self.qk_norm)

    def absorb(self, x: Tensor, attended: Tensor, vectors: Sequence[Tensor]) -> Tensor:
        """Add what attention brought, then the MLP's answer to it, each through its gate."""
        gate, mlp_shift, mlp_scale, mlp_gate = vectors
        x = torch.addcmul(x, gate, self.to_out(attended))
        inner = F.gelu(self.mlp_in(modulated_norm(x, mlp_shift, mlp_scale)), approximate="tanh")
        return torch.addcmul(x, mlp_gate, self.mlp_out(inner))


class DoubleBlock(nn.Module):
    """Text and image, each with weights of its own, attending together."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.image = Stream(hidden, heads)
        self.text = Stream(hidden, heads)

    def forward(
        self,
        image: Tensor,
        text: Tensor,
        for_image: Sequence[Tensor],
        for_text: Sequence[Tensor],
        rope: Tensor,
        attend: Attend,
    ) -> tuple[Tensor, Tensor]:
        """image (R, N, D) and text (R, L, D), one block further."""
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

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.proj_in = nn.Linear(hidden, 7 * hidden)  # Q, K, V and the MLP's inner layer
        self.qk_norm = nn.Parameter(torch.ones(2, hidden // heads))
        self.proj_out = nn.Linear(5 * hidden, hidden)

    def forward(self, x: Tensor, vectors: Sequence[Tensor], rope: Tensor, attend: Attend) -> Tensor:
        """x (R, S, D), one block further."""
        shift, scale, gate = vectors
        inner = self.proj_in(modulated_norm(x, shift, scale))
        qkv_width = 3 * self.heads * self.qk_norm.shape[1]
        qkv, mlp = inner[..., :qkv_width], inner[..., qkv_width:]
        qk, v = split_heads(qkv, self.heads, self.qk_norm)
        attended = attend_rotated(qk, v, rope, attend)
        joined = torch.cat((attended, F.gelu(mlp, approximate="tanh")), dim=-1)
        return torch.addcmul(x, gate, self.proj_out(joined))
