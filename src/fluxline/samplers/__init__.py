"""Samplers and schedules: the mathematics from noise to picture, one model call at a time.

Not here: the model, the loop that drives a sampler, the choice of either (that is the request's).
"""

from fluxline.samplers.schedules import SCHEDULES, Schedule, dynamic_shift, empirical_shift
from fluxline.samplers.solvers import (
    SOLVERS,
    NoiseSource,
    Sampling,
    Solver,
    evaluations,
    is_stochastic,
    start,
)

__all__ = [
    "Schedule",
    "SCHEDULES",
    "dynamic_shift",
    "empirical_shift",
    "Sampling",
    "NoiseSource",
    "Solver",
    "SOLVERS",
    "start",
    "evaluations",
    "is_stochastic",
]
