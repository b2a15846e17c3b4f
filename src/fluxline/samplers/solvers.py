"""Samplers: solvers of the flow's equation, each a generator that reads as its algorithm.

They hold no model, no device and no dtype. Each yields `(x, sigma)` wherever its algorithm calls
the model, is sent the velocity there, and returns the picture. Whoever drives it owns the loop:
it may batch the calls of many samplers into one forward, pause between any two, or close early.
All state is local to the generator; x is never changed in place.

The flow is straight: x = (1 - sigma) x0 + sigma n, with velocity v = dx/dsigma = n - x0. So every
velocity is also a guess of the picture, x0 = x - sigma v, and of the noise, n = x + (1 - sigma) v.

Sigmas fall strictly from at most 1 to exactly 0 (`schedules.py`). The model is never asked at 0,
and the last step always returns the x0 of the last velocity.
"""

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from itertools import pairwise

from torch import Tensor

from fluxline.request import SamplerName

Sampling = Generator[tuple[Tensor, float], Tensor, Tensor]
"""Yields (x, sigma), is sent the velocity (shaped like x), returns x at sigma 0."""

NoiseSource = Callable[[], Tensor]
"""Gives fresh standard normal noise with the shape, dtype and device of x. Only stochastic
samplers call it, once in every step but the last."""

Solver = Callable[[Tensor, Sequence[float], NoiseSource], Sampling]


def euler(x: Tensor, sigmas: Sequence[float], noise: NoiseSource) -> Sampling:
    """Follow the velocity in a straight line to the next sigma. First order.

    Source: black-forest-labs/flux, sampling.py, denoise.
    """
    for sigma, sigma_next in pairwise(sigmas):
        v = yield x, sigma
        x = x + (sigma_next - sigma) * v
    return x


def heun(x: Tensor, sigmas: Sequence[float], noise: NoiseSource) -> Sampling:
    """Average the velocity at both ends of each step but the last. Second order, two calls a step.

    Source: Karras et al. 2022 (arXiv:2206.00364), algorithm 1, whose derivative is our velocity.
    """
    for sigma, sigma_next in pairwise(sigmas):
        v = yield x, sigma
        x_next = x + (sigma_next - sigma) * v
        if sigma_next > 0:
            v_next = yield x_next, sigma_next
            x_next = x + (sigma_next - sigma) * (0.5 * (v + v_next))
        x = x_next
    return x


def ddim(x: Tensor, sigmas: Sequence[float], noise: NoiseSource, *, eta: float = 0.0) -> Sampling:
    """Mix the guessed picture and the guessed noise anew, part of the noise fresh.

    eta is from 0 to 1. At 0 nothing is fresh and this is `euler`, to rounding; at 1 each step draws
    from the posterior q(x_next | x, x0), which is ancestral sampling as in DDPM.
    Source: Song et al. 2021 (arXiv:2010.02502), eq. 12 and 16, with 1 - sigma for the scale of the
    signal and sigma for that of the noise; only their ratio enters eq. 16.
    """
    for sigma, sigma_next in pairwise(sigmas):
        v = yield x, sigma
        x0, n = x - sigma * v, x + (1 - sigma) * v
        kept = (1 - sigma) * sigma_next / ((1 - sigma_next) * sigma)
        fresh = eta * sigma_next * math.sqrt(1 - kept**2)
        x = (1 - sigma_next) * x0 + math.sqrt(sigma_next**2 - fresh**2) * n
        if fresh > 0:
            x = x + fresh * noise()
    return x


def euler_ancestral(x: Tensor, sigmas: Sequence[float], noise: NoiseSource) -> Sampling:
    """Step too far down, then renoise to the next sigma. First order, stochastic.

    The target sigma_next^2 / sigma is that of k-diffusion's sample_euler_ancestral at eta 1 (Karras
    et al.'s notation, where the signal is never scaled). In a flow the signal at sigma has scale
    1 - sigma, so x is first scaled by (1 - sigma_next) / (1 - sigma_down), and as much noise added
    as then lacks to sigma_next in variance. ComfyUI does the same for rectified flows.
    """
    for sigma, sigma_next in pairwise(sigmas):
        v = yield x, sigma
        sigma_down = sigma_next**2 / sigma
        x = x + (sigma_down - sigma) * v
        if sigma_next > 0:
            scale = (1 - sigma_next) / (1 - sigma_down)
            x = scale * x + math.sqrt(sigma_next**2 - (scale * sigma_down) ** 2) * noise()
    return x


def dpmpp_2m(x: Tensor, sigmas: Sequence[float], noise: NoiseSource) -> Sampling:
    """Extrapolate the guessed picture along its last change. Second order, one call a step.

    First order in the first step, which has no past, and in the last, where lambda is infinite.
    Source: Lu et al. 2022, DPM-Solver++ (arXiv:2211.01095), algorithm 2, where alpha = 1 - sigma.
    """
    x0_last, h_last = x, math.inf
    for sigma, sigma_next in pairwise(sigmas):
        v = yield x, sigma
        x0 = x - sigma * v
        if sigma_next == 0:
            return x0
        h = _lambda(sigma_next) - _lambda(sigma)
        guess = x0 + 0.5 * _reach(h, h_last) * (x0 - x0_last)
        x = _toward(guess, x, sigma_next / sigma)
        x0_last, h_last = x0, h
    return x


def unipc(x: Tensor, sigmas: Sequence[float], noise: NoiseSource) -> Sampling:
    """Predict as `dpmpp_2m`, then correct with what the next call says. One call a step.

    The guess made at the predicted x also completes the step that led there: it is taken again from
    where it began, along the curve through the last three guesses. Third order inside, second with
    its first-order ends.
    Source: Zhao et al. 2023, UniPC (arXiv:2302.04867): UniP-2 and UniC-2 with B(h) = e^h - 1, data
    prediction; like theirs, the first correction weighs both its guesses by half.
    """
    x_from, sigma_from, x0_last, x0_before, h, h_last = x, sigmas[0], x, x, math.inf, math.inf
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        v = yield x, sigma
        x0 = x - sigma * v
        if sigma_next == 0:
            return x0
        if i > 0:
            past, present = (0.0, 0.5) if i == 1 else _correction(h, _reach(h, h_last))
            guess = x0_last + past * (x0_last - x0_before) + present * (x0 - x0_last)
            x = _toward(guess, x_from, sigma / sigma_from)
        x_from, sigma_from, x0_last, x0_before = x, sigma, x0, x0_last
        h, h_last = _lambda(sigma_next) - _lambda(sigma), h
        guess = x0 + 0.5 * _reach(h, h_last) * (x0 - x0_before)
        x = _toward(guess, x, sigma_next / sigma)
    return x


SOLVERS: Mapping[SamplerName, Solver] = {
    "euler": euler,
    "heun": heun,
    "ddim": ddim,
    "dpmpp_2m": dpmpp_2m,
    "euler_ancestral": euler_ancestral,
    "unipc": unipc,
}


def start(
    sampler: SamplerName,
    x: Tensor,
    sigmas: Sequence[float],
    noise: NoiseSource,
    eta: float = 0.0,
) -> Sampling:
    """Start a sampler on x at sigmas[0]. Only ddim reads `eta`."""
    if sampler == "ddim":
        return ddim(x, sigmas, noise, eta=eta)
    return SOLVERS[sampler](x, sigmas, noise)


def evaluations(sampler: SamplerName, steps: int) -> int:
    """Count the model calls of a sampler over `steps` intervals."""
    return 2 * steps - 1 if sampler == "heun" else steps


def is_stochastic(sampler: SamplerName, eta: float = 0.0) -> bool:
    """Say whether the sampler will draw from its noise source."""
    return sampler == "euler_ancestral" or (sampler == "ddim" and eta > 0)


def _lambda(sigma: float) -> float:
    # Half the logarithm of the signal-to-noise ratio: -inf at sigma 1. Never asked at 0.
    return math.log((1 - sigma) / sigma) if sigma < 1 else -math.inf


def _reach(h: float, h_last: float) -> float:
    # The next step measured in last steps. A past infinitely far away, at sigma 1 or before the
    # first step, says nothing of the next.
    return h / h_last if h_last < math.inf else 0.0


def _toward(x0: Tensor, x: Tensor, ratio: float) -> Tensor:
    # The exact step for a constant x0, ratio = sigma_next / sigma. The exponential integrator of
    # DPM-Solver++ in a flow: alpha_next (1 - e^-h) is 1 - ratio.
    return x0 + ratio * (x - x0)


def _correction(h: float, reach: float) -> tuple[float, float]:
    # How much of the last and of the newest change of x0 a step of length h sees. With u from 0
    # to 1 along the step, the guesses lie at u = -1 / reach, 0 and 1; the step is the mean, under
    # weight e^(h u), of the parabola through them, so it needs the means of u and of u^2.
    weight = -math.expm1(-h)
    mean = 1 / weight - 1 / h
    mean_square = 1 / weight - 2 * mean / h
    bend = (mean - mean_square) * reach / (1 + reach)
    return reach * bend, mean - bend
