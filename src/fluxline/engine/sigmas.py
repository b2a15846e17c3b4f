"""The noise levels that a job visits, and what its noise is multiplied by."""

from fluxline import samplers
from fluxline.ability import steps_left
from fluxline.engine.job import Job
from fluxline.models.spec import DynamicShift, EmpiricalShift, ModelSpec
from fluxline.request import ScheduleName


def sigmas_of(job: Job, spec: ModelSpec) -> list[float]:
    """The noise levels a job visits, the last of them 0; from a picture, only the lowest."""
    shift = spec.shift
    if isinstance(shift, DynamicShift):
        shift = samplers.dynamic_shift(
            job.key.image_tokens,
            base_seq_len=shift.base_image_seq_len,
            max_seq_len=shift.max_image_seq_len,
            base_shift=shift.base_shift,
            max_shift=shift.max_shift,
        )
    assert job.params.steps is not None  # resolved
    if isinstance(shift, EmpiricalShift):
        shift = samplers.empirical_shift(job.key.image_tokens, job.params.steps)
    sigmas = _spaced(job.params.schedule, job.params.steps, shift, spec)
    if job.source is None:
        return sigmas
    assert job.params.strength is not None  # resolved
    return sigmas[-1 - steps_left(job.params.steps, job.params.strength) :]


def noise_scale(sigma: float, spec: ModelSpec) -> float:
    """By what noise is multiplied that a picture is drawn from."""
    return 1.0 if spec.levels is None else spec.levels.noise_scale(sigma)


def _spaced(schedule: ScheduleName, steps: int, shift: float, spec: ModelSpec) -> list[float]:
    """A schedule over the levels that the model is trained at."""
    if spec.levels is None:
        return samplers.SCHEDULES[schedule](steps, shift)
    own = [samplers.shifted(sigma, shift) for sigma in spec.levels.spaced(steps)]
    if spec.terminal is not None:
        own = samplers.stretched(own, spec.terminal)
    respaced = samplers.respaced_by_ratio if spec.levels.by_ratio else samplers.respaced
    return respaced(schedule, own)
