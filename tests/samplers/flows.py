"""Flows whose velocity is known in closed form, and what drives a sampler through them."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fluxline.request import SamplerName
from fluxline.samplers import NoiseSource, Sampling, start

Velocity = Callable[[Tensor, float], Tensor]


def drive(sampling: Sampling, velocity: Velocity) -> Tensor:
    """Run a sampler to its end and return the picture."""
    try:
        x, sigma = next(sampling)
        while True:
            x, sigma = sampling.send(velocity(x, sigma))
    except StopIteration as end:
        return end.value


def no_noise() -> Tensor:
    """Stand where no noise may be drawn."""
    raise AssertionError("a deterministic sampler drew noise")


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return standard normal numbers, the same for the same seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def noise_like(x: Tensor, seed: int = 1) -> NoiseSource:
    """Return a source of noise shaped like x."""
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(x.shape, generator=generator, dtype=x.dtype)


def begin(name: SamplerName, eta: float, sigmas: Sequence[float], seed: int = 0) -> Sampling:
    """Start a sampler whose noise, first and fresh, is its seed's own."""
    x = normal(1, 4, 6, seed=seed)
    return start(name, x, sigmas, noise_like(x, seed + 100), eta)


def curved(x: Tensor, sigma: float) -> Tensor:
    """Return the velocity of some smooth nonlinear flow, for where any will do."""
    return torch.sin(3 * x) - 0.3 * x + math.cos(2 * sigma)


class Gaussian:
    """The flow of data distributed as N(mean, std^2): the velocity is linear in x."""

    def __init__(self, mean: float, std: float) -> None:
        self.mean, self.std = mean, std

    def velocity(self, x: Tensor, sigma: float) -> Tensor:
        """Return E[noise - x0 | x]."""
        alpha = 1 - sigma
        gain = (sigma - alpha * self.std**2) / (alpha**2 * self.std**2 + sigma**2)
        return gain * (x - alpha * self.mean) - self.mean

    def at(self, noise: Tensor, sigma: float) -> Tensor:
        """Return where the flow has taken `noise`, its value at sigma 1."""
        alpha = 1 - sigma
        return alpha * self.mean + math.hypot(alpha * self.std, sigma) * noise


class Mixture:
    """The flow of two Gaussian bumps: nonlinear in x and in sigma, with a known solution.

    In one dimension the flow of probability keeps the order of points, so a point's rank never
    changes: rank(x at 0) = Phi(x at 1).
    """

    centres = torch.tensor([-1.0, 1.5], dtype=torch.float64)
    weights = torch.tensor([0.4, 0.6], dtype=torch.float64)
    std = 0.8

    def velocity(self, x: Tensor, sigma: float) -> Tensor:
        """Return E[noise - x0 | x]."""
        alpha = 1 - sigma
        variance = alpha**2 * self.std**2 + sigma**2
        offset = x[:, None] - alpha * self.centres  # (points, bumps)
        chance = (self.weights.log() - offset**2 / (2 * variance)).softmax(dim=1)
        x0 = (chance * (self.centres + alpha * self.std**2 / variance * offset)).sum(dim=1)
        return (x - x0) / sigma

    def rank(self, x: Tensor) -> Tensor:
        """Return the fraction of the data that lies below x."""
        return (self.weights * normal_rank((x[:, None] - self.centres) / self.std)).sum(dim=1)


def normal_rank(x: Tensor) -> Tensor:
    """Return Phi(x)."""
    return 0.5 * (1 + torch.erf(x / math.sqrt(2)))
