"""Runs plans on the device: admits, evaluates, decodes. The only room that holds job tensors.

It decides nothing: what to run comes in a `Plan`, what became of it goes out in an `Outcome`.
A failure is narrowed to the job that causes it by running the others without it.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fluxline import samplers
from fluxline.engine.cache import ByteLRU
from fluxline.engine.job import Job, Outcome, Plan
from fluxline.errors import EngineError, FluxlineError, NotFinite, OutOfMemory
from fluxline.models.base import Conditioning, DiffusionModel, DynamicShift, ModelSpec

_log = logging.getLogger(__name__)

CONDITIONING_BYTES = 256 * 2**20  # 60 prompts of FLUX.1 dev; thousands of the embedded model


@dataclass(slots=True)
class Sample:
    """The tensors of one running job."""

    sampling: samplers.Sampling
    x: Tensor  # (N, C) float32, what the sampler wants evaluated, or the result
    sigma: float
    contexts: list[Any]  # the family's: one per row; the second is the negative prompt's
    evaluation: int = 0


class Runner:
    """Thread: the engine's."""

    def __init__(
        self, model: DiffusionModel[Any], *, conditioning_bytes: int = CONDITIONING_BYTES
    ) -> None:
        self._model = model
        self._samples: dict[str, Sample] = {}
        self._conditioning: ByteLRU[Conditioning] = ByteLRU(conditioning_bytes)

    @torch.inference_mode()
    def execute(self, plan: Plan) -> Outcome:
        """Do what the plan says. Never raises for a job's failure: that is in the outcome."""
        outcome = Outcome()
        for job_id in plan.drop:
            self._samples.pop(job_id, None)
        self._each_alone_if_needed(self._decode, plan.decode, outcome)  # nobody waits for others
        self._each_alone_if_needed(self._admit, plan.admit, outcome)
        alive = tuple(job for job in plan.evaluate if job.id not in outcome.failed)
        began = time.perf_counter()
        self._each_alone_if_needed(self._evaluate, alive, outcome)
        outcome.seconds = time.perf_counter() - began
        return outcome

    def _each_alone_if_needed(
        self,
        act: Callable[[Sequence[Job], Outcome], None],
        jobs: Sequence[Job],
        outcome: Outcome,
    ) -> None:
        """Act on all jobs at once; if that raises, on each alone, so that only the guilty fail."""
        if not jobs:
            return
        try:
            act(jobs, outcome)
        except torch.OutOfMemoryError:
            if act == self._evaluate:
                outcome.out_of_memory = True  # the scheduler tries again with fewer
            elif len(jobs) == 1:
                outcome.failed[jobs[0].id] = _out_of_memory(jobs[0])
            else:
                self._one_by_one(act, jobs, outcome)
        except Exception as exc:  # noqa: BLE001 - the door of the device: narrowed and logged
            if len(jobs) == 1:
                outcome.failed[jobs[0].id] = _as_engine_error(jobs[0], exc)
            else:
                self._one_by_one(act, jobs, outcome)

    def _one_by_one(
        self,
        act: Callable[[Sequence[Job], Outcome], None],
        jobs: Sequence[Job],
        outcome: Outcome,
    ) -> None:
        for job in jobs:
            if job.id not in outcome.advanced:  # it got through before another one raised
                self._each_alone_if_needed(act, (job,), outcome)

    def _admit(self, jobs: Sequence[Job], outcome: Outcome) -> None:
        conditioning = self._encode([text for job in jobs for text in _texts(job)])
        for job in jobs:
            self._samples[job.id] = self._start(job, conditioning)
            if any(conditioning[text].truncated for text in _texts(job)):
                read = self._model.spec.text_length
                outcome.notes[job.id] = f"prompt cut: {self._model.spec.name} reads {read} tokens"

    def _encode(self, texts: Sequence[str]) -> dict[str, Conditioning]:
        """Conditioning of every text; each distinct text is encoded once, in one batch."""
        found = {text: self._conditioning.get(text) for text in texts}
        if new := [text for text, known in found.items() if known is None]:
            for text, made in zip(new, self._model.encode(new), strict=True):
                self._conditioning.put(text, made)
                found[text] = made
        return {text: known for text, known in found.items() if known is not None}

    def _start(self, job: Job, conditioning: dict[str, Conditioning]) -> Sample:
        width, height = job.drawn
        params = job.params
        sigmas = sigmas_of(job, self._model.spec)
        generator = torch.Generator("cpu").manual_seed(job.seed)
        noise = self._model.noise(generator, width, height)
        sampling = samplers.start(
            params.sampler,
            noise,
            sigmas,
            lambda: self._model.noise(generator, width, height),
            params.eta,
        )
        contexts = [
            self._model.context(
                conditioning[text],
                width=width,
                height=height,
                guidance=params.guidance,
                sigmas=sigmas[:-1],
            )
            for text in _texts(job)
        ]
        x, sigma = next(sampling)
        return Sample(sampling, x, sigma, contexts)

    def _evaluate(self, jobs: Sequence[Job], outcome: Outcome) -> None:
        samples = [self._samples[job.id] for job in jobs]
        x = torch.stack([s.x for s in samples for _ in s.contexts])
        sigmas = [s.sigma for s in samples for _ in s.contexts]
        velocity = self._model.evaluate(x, sigmas, [c for s in samples for c in s.contexts])
        row = 0
        for job, sample in zip(jobs, samples, strict=True):
            v = velocity[row]
            if len(sample.contexts) == 2:
                negative = velocity[row + 1]
                v = negative + job.params.cfg_scale * (v - negative)
            row += len(sample.contexts)
            self._advance(job, sample, v, outcome)

    def _advance(self, job: Job, sample: Sample, velocity: Tensor, outcome: Outcome) -> None:
        sample.evaluation += 1
        if job.preview_every and sample.evaluation % job.preview_every == 0:
            x0 = sample.x - sample.sigma * velocity
            preview = self._model.preview(x0, *job.drawn)
            if preview is not None:
                outcome.previews[job.id] = preview.numpy()
        try:
            sample.x, sample.sigma = sample.sampling.send(velocity)
        except StopIteration as end:
            sample.x = end.value
            outcome.advanced[job.id] = True
        else:
            outcome.advanced[job.id] = False

    def _decode(self, jobs: Sequence[Job], outcome: Outcome) -> None:
        x = torch.stack([self._samples[job.id].x for job in jobs])
        finite = x.isfinite().flatten(1).all(1).tolist()
        good = [job for job, ok in zip(jobs, finite, strict=True) if ok]
        for job in jobs:
            if job not in good:
                message = f"the model answered NaN or infinity for picture {job.index}"
                outcome.failed[job.id] = NotFinite(message)
        if good:
            pixels = self._model.decode(x[finite], *jobs[0].drawn).numpy()
            outcome.pictures.update({job.id: pixels[i] for i, job in enumerate(good)})


def sigmas_of(job: Job, spec: ModelSpec) -> list[float]:
    """The noise levels a job visits, the last of them 0."""
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
    return samplers.SCHEDULES[job.params.schedule](job.params.steps, shift)


def _texts(job: Job) -> tuple[str, ...]:
    return (job.prompt, job.params.negative_prompt)[: job.rows]


def _as_engine_error(job: Job, exc: Exception) -> FluxlineError:
    _log.error("job %s failed", job.id, exc_info=exc)
    if isinstance(exc, FluxlineError):
        return exc
    return EngineError(f"picture {job.index} failed inside the engine; the log has the cause")


def _out_of_memory(job: Job) -> FluxlineError:
    width, height = job.drawn
    return OutOfMemory(f"{width}x{height} does not fit into the device's memory")
