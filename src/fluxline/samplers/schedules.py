"""Schedules: at which sigmas a picture is evaluated, from noise (1) to picture (0).

Plain floats; no tensors, no model, no sampler. Every schedule has the same shape,
`(steps, shift) -> steps + 1 values`, strictly falling from 1.0 to exactly 0.0.

`shift` is the factor alpha of Esser et al. 2024 (arXiv:2403.03206, eq. 23); above 1 it spends more
of the steps near the noise. diffusers writes it twice: as `shift` of a static schedule, and as
exp(mu) of a dynamic one. Both are the same formula, so here it is one number: schnell takes 1.0,
dev takes `dynamic_shift(tokens)`, FLUX.2 `empirical_shift(tokens, steps)`.
"""

import math
from collections.abc import Callable, Mapping

from fluxline.request import ScheduleName

Schedule = Callable[[int, float], list[float]]
"""`(steps >= 1, shift > 0)` to steps + 1 sigmas."""

_RHO = 7.0  # Karras et al. 2022, who found 5 to 10 to give the best images
_BETA = 0.6  # both parameters of the distribution, as in Lee et al. 2024


def simple(steps: int, shift: float) -> list[float]:
    """Space the steps evenly, then shift: the schedule FLUX was released with.

    Source: black-forest-labs/flux, sampling.py, get_schedule.
    """
    return [shifted(1 - i / steps, shift) for i in range(steps)] + [0.0]


def karras(steps: int, shift: float) -> list[float]:
    """Space the seventh roots of sigma evenly: short steps near the picture.

    Source: Karras et al. 2022 (arXiv:2206.00364), eq. 5, over the range of `simple`.
    """
    lowest = shifted(1 / steps, shift) ** (1 / _RHO)
    return [(1 + ramp * (lowest - 1)) ** _RHO for ramp in _ramp(steps)] + [0.0]


def exponential(steps: int, shift: float) -> list[float]:
    """Space the logarithms of sigma evenly, over the range of `simple`."""
    lowest = shifted(1 / steps, shift)
    return [lowest**ramp for ramp in _ramp(steps)] + [0.0]


def beta(steps: int, shift: float) -> list[float]:
    """Space sigma by the quantiles of a beta distribution: short steps at both ends.

    Source: Lee et al. 2024, Beta Sampling is All You Need (arXiv:2407.12173), over the range of
    `simple`.
    """
    lowest = shifted(1 / steps, shift)
    quantiles = [1 - _beta_quantile(ramp) for ramp in _ramp(steps)]
    return [q + (1 - q) * lowest for q in quantiles] + [0.0]


SCHEDULES: Mapping[ScheduleName, Schedule] = {
    "simple": simple,
    "karras": karras,
    "beta": beta,
    "exponential": exponential,
}


def shifted(sigma: float, shift: float) -> float:
    """Bend one sigma toward noise by `shift`; 0 and 1 stay exactly where they are.

    This is shift * s / (1 + (shift - 1) * s), the denominator written so that 1 maps to 1.0 and not
    to one rounding above it.
    """
    return shift * sigma / (shift * sigma + (1 - sigma))


def dynamic_shift(
    tokens: int,
    *,
    base_seq_len: int = 256,
    max_seq_len: int = 4096,
    base_shift: float = 0.5,
    max_shift: float = 1.15,
) -> float:
    """Return the shift exp(mu) for a picture of `tokens` image tokens.

    mu is a line through (base_seq_len, base_shift) and (max_seq_len, max_shift), and goes on
    beyond both. The defaults are FLUX.1 dev's; a checkpoint names its own in its scheduler config.
    Source: black-forest-labs/flux, sampling.py, get_lin_function and time_shift.
    """
    slope = (max_shift - base_shift) / (max_seq_len - base_seq_len)
    return math.exp(base_shift + slope * (tokens - base_seq_len))


def empirical_shift(tokens: int, steps: int) -> float:
    """Return the shift exp(mu) of FLUX.2 for a picture of `tokens` image tokens in so many steps.

    mu is a line in tokens for 10 steps and another for 200; steps between lie between, and from
    4300 tokens on the second holds for all. Source: black-forest-labs/flux2, sampling.py,
    compute_empirical_mu, which fitted both.
    """
    of_200_steps = 0.00016927 * tokens + 0.45666666
    if tokens > 4300:
        return math.exp(of_200_steps)
    of_10_steps = 8.73809524e-05 * tokens + 1.89833333
    return math.exp(of_10_steps + (of_200_steps - of_10_steps) * (steps - 10) / 190)


def _ramp(steps: int) -> list[float]:
    # From 0 to 1; a single step stays at 0, which every schedule maps to the highest sigma.
    return [i / max(steps - 1, 1) for i in range(steps)]


def _beta_quantile(p: float) -> float:
    """Return the x below which the fraction `p` of a Beta(0.6, 0.6) lies.

    Newton's method for I_x(a, a) = p in the variable u = x^a. There the distribution function is
    u / (a B(a, a)) times a series in x (DLMF 8.17.7), convex because a < 1, so the steps approach
    the root from above and cannot leave (0, 1/2]. The other half is its mirror image.
    """
    if p > 0.5:
        return 1 - _beta_quantile(1 - p)
    a = _BETA
    scale = a * math.gamma(a) ** 2 / math.gamma(2 * a)  # a B(a, a)
    u = min(p * scale, 0.5**a)  # the series is never less than its first term, 1
    while True:
        x: float = u ** (1 / a)
        step = (u * _beta_series(x) - p * scale) * (1 - x) ** (1 - a)
        if step <= 1e-16 * u:  # convex: below the root only by rounding
            return x
        u -= step


def _beta_series(x: float) -> float:
    # 2F1(a, 1 - a; a + 1; x), the sum of a / (a + n) * (1 - a)_n / n! * x^n. As x <= 1/2, each
    # term is less than half the one before: 64 of them are exact in double precision.
    a, term, total = _BETA, 1.0, 1.0
    for n in range(1, 64):
        term *= (n - a) / n * x
        total += term * a / (a + n)
    return total
