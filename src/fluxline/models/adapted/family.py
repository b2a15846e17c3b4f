"""What the adapter must know of a family: a class each, mostly names and numbers.

A family holds diffusers' pipeline, of which only the parts are used: `encode_prompt`, the
network, the tokenizers. The loop is ours.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fluxline.models.adapted.levels import TrainedLevels, levels_of
from fluxline.models.conditioning import Conditioning, Steer, plain_steer

Texts = Mapping[str, Tensor]
"""What the encoders made of one prompt, by names that the family's `predict` reads; "text" is the
sequence (L, D)."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a forward besides its latent. Sizes in px."""

    texts: Texts
    width: int
    height: int
    guidance: float | None
    sigma: float
    sigma_next: float  # at which its sampler evaluates after this one; 0 at the end


class Family:
    """One family of models. Thread: the engine's.

    pipe: its pipeline, on the device, of which `__call__` is never called.
    """

    name: ClassVar[str]
    pipelines: ClassVar[tuple[str, ...]]  # diffusers' classes, as model_index.json names them
    unused: ClassVar[tuple[str, ...]] = ()  # parts that are not loaded
    patch: ClassVar[int] = 2  # latent positions along a token's side
    text_length: ClassVar[int]
    mixes_lengths: ClassVar[bool] = False  # rows of unequal text share a forward
    draws_float32: ClassVar[bool] = False  # noise, whatever the model computes in
    own_spacing: ClassVar[bool] = False  # see `levels_of`
    default_steps: int
    cfg_scale: float  # the default; 1: off

    def __init__(self, pipe: Any) -> None:  # diffusers is untyped
        self.pipe = pipe
        self.network = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
        self.levels = levels_of(pipe.scheduler, own_spacing=self.own_spacing)
        self.device: torch.device = self.network.device
        self.dtype: torch.dtype = self.network.dtype

    # ---- what a family says of itself

    def native_size(self, scale: int) -> tuple[int, int]:
        """(width, height) in px that its network's sample_size means."""
        side = int(self.network.config.sample_size) * scale
        return side, side

    def trained_sizes(self) -> tuple[tuple[int, int], ...]:
        """(width, height) in px; empty: any."""
        return ()

    def distilled_guidance(self) -> float | None:
        """The default of a guidance that its network reads; None: it reads none."""
        return None

    def is_too_long(self, prompt: str) -> bool:
        """Whether the encoders cut the prompt."""
        return tokens_of(self.pipe.tokenizer, prompt) > self.text_length

    # ---- what a family does

    def encode(self, prompts: Sequence[str]) -> list[Texts]:
        """Encode prompts."""
        raise NotImplementedError

    def predict(self, x: Tensor, timesteps: Tensor, rows: Sequence[Row]) -> Tensor:
        """The network's answer (R, c, h, w) for latents (R, c, h, w) of one size."""
        raise NotImplementedError

    def timestep(self, sigma: float) -> float:
        """How the network wants to be told a level."""
        if isinstance(self.levels, TrainedLevels):
            return self.levels.timestep(sigma)
        return 1000 * sigma

    def steer(self, cfg_scale: float, conditioning: Conditioning) -> Steer:
        """How a row and its negative become one velocity."""
        return plain_steer(cfg_scale, conditioning)


def stacked(rows: Sequence[Row], name: str) -> Tensor:
    """The tensor of that name of all rows, (R, ...)."""
    return torch.stack([row.texts[name] for row in rows])


def by_prompt(**batched: Tensor) -> list[Texts]:
    """Tensors over prompts (P, ...) taken apart, each prompt's on its own memory."""
    count = len(next(iter(batched.values())))
    return [{name: t[i].clone() for name, t in batched.items()} for i in range(count)]


def tokens_of(tokenizer: Callable[..., Any], text: str) -> int:
    """How many tokens a text is, not cut."""
    return len(tokenizer(text, truncation=False, verbose=False)["input_ids"])
