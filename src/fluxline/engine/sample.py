"""The tensors of one running job, and what becomes of them with a velocity."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fluxline import samplers
from fluxline.linear.lora import Mix
from fluxline.models.conditioning import Steer
from fluxline.parallel.pipefusion import Pipeline
from fluxline.parallel.stale import Remembered

ALL = slice(None)


@dataclass(frozen=True, slots=True)
class Kept:
    """The part of a picture that is not redrawn: clean tokens (N, C), and a mask (N, C) of 0 where
    they stay, 1 where they are redrawn."""

    clean: Tensor
    mask: Tensor

    def hold(self, velocity: Tensor, x: Tensor, sigma: float, where: slice = ALL) -> Tensor:
        """A velocity whose guess of the picture, x - sigma v, is the known one where it stays.

        where: the tokens that it is of. For euler this is what diffusers does in its inpainting
        pipelines (blend after each step with the known picture, noised as the first x was); every
        other sampler may take it too.
        """
        return torch.where(self.mask[where] > 0, velocity, (x - self.clean[where]) / sigma)


@dataclass(slots=True)
class Settling:
    """Makes one velocity of what the rows of a picture, or of a part of it, were given.

    new_steer: makes what steers; each part has its own, which may remember.
    """

    new_steer: Callable[[], Steer]
    kept: Kept | None = None
    _steers: dict[int, Steer] = field(default_factory=dict)

    def __call__(self, rows: Tensor, x: Tensor, sigma: float, where: slice = ALL) -> Tensor:
        """The velocity (n, C) of rows (R, n, C), the second a negative prompt's, at x and sigma.

        where: the tokens that they are of; all, unless said.
        """
        velocity = rows[0]
        if len(rows) == 2:
            velocity = self._steer(where.start or 0)(rows[0], rows[1])
        if self.kept is not None:
            velocity = self.kept.hold(velocity, x, sigma, where)
        return velocity

    def close(self) -> None:
        """Let go of all."""
        self.kept = None
        self._steers.clear()

    def _steer(self, first: int) -> Steer:
        if first not in self._steers:
            self._steers[first] = self.new_steer()
        return self._steers[first]


@dataclass(slots=True)
class Sample:
    """A job on its way from noise to picture."""

    sampling: samplers.Sampling
    x: Tensor  # (N, C) float32, what the sampler wants evaluated, or the result
    sigma: float
    contexts: list[Any]  # the family's: one per row; the second is the negative prompt's
    settle: Settling
    mix: Mix
    evaluation: int = 0
    turn: Remembered | None = None  # what ranks remember that do not wait for each other
    pipeline: Pipeline | None = None  # in place of the sampler, where ranks are stages

    def close(self) -> None:
        """Let go of all but x. Where ranks are many, all of them at once."""
        if self.turn is not None:
            self.turn.close()
        self.contexts, self.turn, self.pipeline = [], None, None
        self.sampling.close()
        self.settle.close()
