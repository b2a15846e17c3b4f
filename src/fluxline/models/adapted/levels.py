"""The noise levels a model was trained at, read off diffusers' scheduler, as sigmas of the flow.

Stable Diffusion 1.5 and XL, HunyuanDiT and PixArt are trained on another path than FLUX:
    z = alpha x0 + beta n  with  alpha^2 + beta^2 = 1.
Both paths are the same straight line seen at another scale,
    sigma = beta / (alpha + beta)        x = z / (alpha + beta) = (1 - sigma) x0 + sigma n,
and 1 / (alpha + beta) = hypot(1 - sigma, sigma). With k = beta / alpha, the sigma of Karras et al.
(arXiv:2206.00364), that is sigma = k / (1 + k). A solver that holds x0 and n still over a step
ends at the same x0 and n on either path: `euler` is DDIM with eta 0 and k-diffusion's Euler, `ddim`
is DDIM at every eta (1: DDPM, and k-diffusion's Euler ancestral), and since -log k is half the
logarithm of the signal-to-noise ratio, `dpmpp_2m` and `unipc` are theirs too. Only `heun` and
`euler_ancestral` average and renoise along the flow, and are not k-diffusion's.

Plain floats; no model. Source of the paths' equality: Karras et al. 2022, eq. 4 and table 1.
"""

import math
from bisect import bisect_right
from dataclasses import dataclass
from typing import Any, Literal

from fluxline.models.spec import Levels

Spacing = Literal["leading", "trailing", "linspace"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowLevels:
    """Of a flow: any level may be visited. highest, lowest: before the shift, of the steps that
    visit the model; lowest None: the highest is divided evenly.
    """

    highest: float = 1.0
    lowest: float | None = None
    by_ratio: bool = False

    def spaced(self, steps: int) -> list[float]:
        """Sigmas before the shift, falling evenly."""
        if self.lowest is None:
            return [self.highest * (1 - i / steps) for i in range(steps)]
        fall = (self.highest - self.lowest) / max(steps - 1, 1)
        return [self.highest - i * fall for i in range(steps)]

    def noise_scale(self, sigma: float) -> float:
        """1: what is drawn starts as noise of variance 1, even where sigma is just below 1."""
        return 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedLevels:
    """Of a variance-preserving model: sigmas[t] is the level of timestep t, rising.

    spacing: how steps fall on the timesteps, as table 2 of Lin et al. (arXiv:2305.08891) names it.
    spare: steps that are spaced and not visited, the lowest; diffusers' DPM-Solvers have one.
    """

    sigmas: tuple[float, ...]
    spacing: Spacing
    offset: int = 0  # added to the timesteps of "leading"
    spare: int = 0
    by_ratio: bool = True

    def spaced(self, steps: int) -> list[float]:
        """Sigmas at the timesteps that diffusers' schedulers visit."""
        return [self.sigmas[t] for t in self._timesteps(steps)]

    def noise_scale(self, sigma: float) -> float:
        """What noise of variance 1 on the model's path is in the flow."""
        return math.hypot(1 - sigma, sigma)

    def timestep(self, sigma: float) -> float:
        """Where a level lies between timesteps, evenly in the logarithm of k = s / (1 - s)."""
        above = min(max(bisect_right(self.sigmas, sigma), 1), len(self.sigmas) - 1)
        low, high = self.sigmas[above - 1], self.sigmas[above]
        part = (_log_ratio(sigma) - _log_ratio(low)) / (_log_ratio(high) - _log_ratio(low))
        return above - 1 + min(max(part, 0.0), 1.0)

    def _timesteps(self, steps: int) -> list[int]:
        trained, last = len(self.sigmas), steps + self.spare - 1
        if self.spacing == "leading":
            return [(last - i) * (trained // (last + 1)) + self.offset for i in range(steps)]
        if self.spacing == "trailing":
            return [round(trained * (1 - i / steps)) - 1 for i in range(steps)]
        return [round((trained - 1) * (1 - i / max(last, 1))) for i in range(steps)]


def levels_of(scheduler: Any, *, own_spacing: bool = False) -> Levels:
    """What diffusers' scheduler says of its model's levels.

    own_spacing: the family's pipeline leaves the choice of sigmas to the scheduler, which then
    goes down to the lowest it was trained at.
    """
    config = scheduler.config
    if config.get("use_flow_sigmas"):
        return FlowLevels(highest=1 - 1 / config.num_train_timesteps)
    if not hasattr(scheduler, "alphas_cumprod"):
        return FlowLevels(lowest=scheduler.sigma_min if own_spacing else None)
    ratios = [math.sqrt((1 - a) / a) for a in scheduler.alphas_cumprod.double().tolist()]
    return TrainedLevels(
        sigmas=tuple(k / (1 + k) for k in ratios),
        spacing=config.timestep_spacing,
        offset=config.get("steps_offset", 0),
        spare=int("solver_order" in config),
    )


def _log_ratio(sigma: float) -> float:
    return math.log(sigma / (1 - sigma)) if 0 < sigma < 1 else math.copysign(math.inf, sigma - 0.5)
