"""Runs plans on the device: decodes, admits, evaluates. The only room that holds job tensors.

It decides nothing: what to run comes in a `Plan`, what became of it goes out in an `Outcome`.
A failure is narrowed to the job that causes it by running each of the others alone.
"""

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fluxline import samplers
from fluxline.engine.faults import is_lost, is_out_of_memory
from fluxline.engine.job import Advance, Job, Outcome, Plan, Score
from fluxline.engine.prompts import Asked, Prompts, acting, asked_of
from fluxline.engine.sample import Kept, Sample, Settling
from fluxline.engine.seen import Seen, as_tensor
from fluxline.engine.sigmas import noise_scale, sigmas_of
from fluxline.engine.tally import Tally
from fluxline.errors import DeviceLost, EngineError, FluxlineError, NotFinite, OutOfMemory
from fluxline.linear.lora import LIMIT_BYTES, AdapterBank
from fluxline.models.base import Adaptable, Banded, DiffusionModel, Walkable, taking
from fluxline.models.conditioning import Conditioning
from fluxline.models.scorers import Scorer
from fluxline.parallel.crew import Crew
from fluxline.parallel.pipefusion import Drawing, Pipeline

_log = logging.getLogger(__name__)

BURST = 8  # evaluations that a pipeline is not stopped in: it runs empty after them


class Runner:
    """Thread: the engine's. shows: whether anybody looks at its previews."""

    def __init__(
        self,
        model: DiffusionModel[Any],
        open_scorer: Callable[[], Scorer],
        *,
        crew: Crew | None = None,
        lora_bytes: int = LIMIT_BYTES,
        shows: bool = True,
    ) -> None:
        self._model, self._shows = model, shows
        self._crew = crew or Crew.alone()
        self._open_scorer = open_scorer
        self._samples: dict[str, Sample] = {}
        networks = model.adaptable if isinstance(model, Adaptable) else {}
        self._bank = AdapterBank(networks, limit_bytes=lora_bytes)
        guide_bytes = 0 if self._crew.is_shared else None  # ranks' own sizes may differ
        self.tally = Tally()
        self._seen = Seen(model, self._bank, guide_bytes=guide_bytes)
        self._prompts = Prompts(model, self._bank, self._seen, self.tally)

    def close(self) -> None:
        """Leave the model as it was found."""
        self._bank.detach()

    @torch.inference_mode()
    def execute(self, plan: Plan) -> Outcome:
        """Do what the plan says. A job's failure is in the outcome; raises only DeviceLost."""
        outcome = Outcome()
        for job_id in plan.drop:
            if (sample := self._samples.pop(job_id, None)) is not None:
                sample.close()
        self._attempt(self._decode, plan.decode, outcome)  # first: nobody waits for the others
        judged = [job for job in plan.decode if job.request.top_k and job.id in outcome.pictures]
        self._attempt(self._score, judged, outcome)
        outcome.admitted_at = time.monotonic()
        self._attempt(self._admit, plan.admit, outcome)
        outcome.encoded_at = time.monotonic()
        admitted = [job for job in plan.evaluate if job.id in self._samples]
        self._attempt(self._evaluate, admitted, outcome)
        self._bank.keep({worn for sample in self._samples.values() for worn, _ in sample.mix})
        outcome.evaluated_at = time.monotonic()
        outcome.evaluated_s = outcome.evaluated_at - outcome.encoded_at
        self.tally.evaluated_s += outcome.evaluated_s
        return outcome

    def _attempt(
        self,
        act: Callable[[Sequence[Job], Outcome], None],
        jobs: Sequence[Job],
        outcome: Outcome,
    ) -> None:
        """Act on all jobs at once; if that fails, on each alone, so that only the guilty fail."""
        fault = self._fault(act, jobs, outcome) if jobs else None
        if isinstance(fault, OutOfMemory) and self._bank.forget():  # what it held may be enough
            fault = self._fault(act, jobs, outcome)
        if fault is None:
            return
        is_about_room = isinstance(fault, OutOfMemory)
        if is_about_room and len(jobs) > 1 and act == self._evaluate:
            outcome.batch_too_large = True  # the scheduler tries again with fewer
        elif len(jobs) > 1:
            for job in jobs:
                self._attempt(act, (job,), outcome)
        else:
            outcome.pictures.pop(jobs[0].id, None)  # which could not be judged
            if is_about_room:
                outcome.no_room.add(jobs[0].id)
            else:
                outcome.failed[jobs[0].id] = fault

    def _fault(
        self,
        act: Callable[[Sequence[Job], Outcome], None],
        jobs: Sequence[Job],
        outcome: Outcome,
    ) -> FluxlineError | None:
        """Act, and say what went wrong. Its traceback ends here, with the tensors it holds."""
        try:
            act(jobs, outcome)
        except Exception as exc:
            if self._is_awaited(act, exc):  # others wait for what will not come
                raise DeviceLost(f"{type(exc).__name__}: {exc}") from exc
            return self._narrowed(exc, jobs)
        return None

    def _is_awaited(self, act: Callable[[Sequence[Job], Outcome], None], exc: Exception) -> bool:
        """Whether other ranks wait for what this one failed to do, and did not fail themselves."""
        fails_alike = act == self._admit and isinstance(exc, FluxlineError)
        return self._crew.is_shared and not fails_alike and act != self._score

    def _narrowed(self, exc: Exception, jobs: Sequence[Job]) -> FluxlineError:
        """The error that jobs end with. Raises DeviceLost, which is nobody's own."""
        if isinstance(exc, DeviceLost):
            raise exc
        if is_out_of_memory(exc):
            return OutOfMemory("the device's memory is full")
        _log.error("%s failed", ", ".join(job.id for job in jobs), exc_info=exc)
        if is_lost(self._model.device):
            raise DeviceLost("the device no longer answers")
        if isinstance(exc, FluxlineError):
            return exc
        numbers = ", ".join(str(job.index) for job in jobs)
        return EngineError(f"picture {numbers} failed inside the engine; the log has the cause")

    def _decode(self, jobs: Sequence[Job], outcome: Outcome) -> None:
        x = torch.stack([self._samples[job.id].x for job in jobs])
        finite = x.isfinite().flatten(1).all(1).tolist()
        good = [job for job, ok in zip(jobs, finite, strict=True) if ok]
        for job in jobs:
            if job not in good:
                message = f"the model answered NaN or infinity for picture {job.index}"
                outcome.failed[job.id] = NotFinite(message)
        if good:
            pixels = self._drawn(x[finite], *jobs[0].drawn).numpy()
            outcome.pictures.update({job.id: pixels[i] for i, job in enumerate(good)})

    def _drawn(self, x: Tensor, width: int, height: int) -> Tensor:
        """Pictures of clean tokens; one alone that has no room whole is decoded in bands."""
        try:
            return self._model.decode(x, width, height)
        except Exception as exc:
            if len(x) > 1 or not isinstance(self._model, Banded) or not is_out_of_memory(exc):
                raise
            if self._crew.is_shared:  # it was in bands, and others are in the middle of theirs
                raise
            if width * height > self._model.banded.whole_pixels:  # it was in bands
                raise
        with taking(self._model.banded, whole_pixels=0):
            return self._model.decode(x, width, height)

    def _score(self, jobs: Sequence[Job], outcome: Outcome) -> None:
        """Judge pictures of which somebody wants the best."""
        scorer = self._open_scorer()
        pixels = [outcome.pictures[job.id] for job in jobs]
        scores = scorer.score(pixels, [job.request.prompt for job in jobs])
        for job, score in zip(jobs, scores, strict=True):
            outcome.scores[job.id] = Score(score, scorer.name)

    def _admit(self, jobs: Sequence[Job], outcome: Outcome) -> None:
        conditioning = self._prompts.conditioning(jobs)
        started = {job.id: self._start(job, conditioning) for job in jobs}
        self._samples.update(started)  # all or none: who does not fit holds nothing
        for job in jobs:
            if any(conditioning[asked].truncated for asked in asked_of(job)):
                read = self._model.spec.text_length
                outcome.notes[job.id] = f"prompt cut: {self._model.spec.name} reads {read} tokens"

    def _start(self, job: Job, conditioning: dict[Asked, Conditioning]) -> Sample:
        sigmas = sigmas_of(job, self._model.spec)
        generator = torch.Generator("cpu").manual_seed(job.seed)
        noise = partial(self._model.noise, generator, *job.drawn)
        x, kept = self._laid_over(job, noise(), sigmas[0])
        contexts = [
            self._prompts.context(asked, conditioning[asked], job, tuple(sigmas[:-1]))
            for asked in asked_of(job)
        ]
        assert job.params.cfg_scale is not None  # resolved
        new_steer = partial(
            self._model.spec.steering, job.params.cfg_scale, conditioning[asked_of(job)[0]]
        )
        sampling = _sampling(job, sigmas, x, noise)
        x, sigma = next(sampling)
        sample = Sample(sampling, x, sigma, contexts, Settling(new_steer, kept), job.mix)
        if (asked := job.params.parallel) is not None and asked.mode == "pipefusion":
            sample.pipeline = self._pipeline(job, sample, partial(_sampling, job, sigmas), noise)
        elif asked is not None:
            sample.turn = self._crew.remembering(asked)
        return sample

    def _laid_over(self, job: Job, noise: Tensor, sigma: float) -> tuple[Tensor, Kept | None]:
        """What a job starts from, (N, C): noise, laid over its picture as far as its first sigma
        says; and what of that picture stays."""
        if job.source is None:
            return noise * noise_scale(sigma, self._model.spec), None
        clean = self._seen.clean(job.source.drawn)
        x = (1 - sigma) * clean + sigma * noise
        if job.source.mask is None or self._model.spec.fills:
            return x, None
        return x, Kept(clean, self._model.encode_mask(as_tensor(job.source.mask)))

    def _pipeline(
        self,
        job: Job,
        sample: Sample,
        start: Callable[[Tensor, samplers.NoiseSource], samplers.Sampling],
        noise: samplers.NoiseSource,
    ) -> Pipeline:
        """A job's way through the stages that ranks are."""
        assert isinstance(self._model, Walkable)  # else nobody may ask for it
        told = self._model.told(sample.contexts)
        assert told is not None  # who is shown pictures was refused
        drawing = Drawing(
            x=sample.x,
            text=told.text,
            rope=told.rope,
            modulation=told.modulation,
            start=start,
            noise=noise,
            settle=sample.settle,
        )
        assert job.params.parallel is not None
        assert job.params.parallel.sync is not None  # resolved
        return Pipeline(
            self._crew.stages(self._model.device),
            self._model.transformer,
            drawing,
            warmup=job.params.parallel.sync,
        )

    def _evaluate(self, jobs: Sequence[Job], outcome: Outcome) -> None:
        samples = [self._samples[job.id] for job in jobs]
        if (pipeline := samples[0].pipeline) is not None:
            self._run(pipeline, jobs[0], samples[0], outcome)
            return
        x = torch.stack([s.x for s in samples for _ in s.contexts])
        sigmas = [s.sigma for s in samples for _ in s.contexts]
        mixes = [
            acting(job, "evaluate")
            for job, s in zip(jobs, samples, strict=True)
            for _ in s.contexts
        ]
        contexts = [c for s in samples for c in s.contexts]

        def run(own: slice) -> Tensor:
            if not len(part := x[own]):
                return part
            with self._bank.rows(mixes[own]):
                return self._model.evaluate(part, sigmas[own], contexts[own])

        velocity = self._crew.evaluate(len(x), run, samples[0].turn)
        self._count_forward(rows=len(x), tokens=sum(job.tokens for job in jobs))
        row = 0
        for job, sample in zip(jobs, samples, strict=True):
            rows = velocity[row : row + len(sample.contexts)]
            row += len(sample.contexts)
            try:
                self._advance(job, sample, rows, outcome)
            except Exception as exc:  # noqa: BLE001 - one job's solver: the others go on
                fault = self._narrowed(exc, (job,))
                if isinstance(fault, OutOfMemory):
                    outcome.no_room.add(job.id)
                else:
                    outcome.failed[job.id] = fault

    def _advance(self, job: Job, sample: Sample, rows: Tensor, outcome: Outcome) -> None:
        x, sigma = sample.x, sample.sigma
        velocity = sample.settle(rows, x, sigma)
        is_over = False
        try:
            sample.x, sample.sigma = sample.sampling.send(velocity)
        except StopIteration as end:
            sample.x, is_over = end.value, True
        self._note(job, sample, Advance(1, is_over), lambda: x - sigma * velocity, outcome)

    def _run(self, pipeline: Pipeline, job: Job, sample: Sample, outcome: Outcome) -> None:
        """Have a job go on through the stages, until somebody may want to hear of it."""
        count = min(BURST, job.evaluations - sample.evaluation)
        if every := job.request.preview_every:
            count = min(count, every - sample.evaluation % every)
        with self._bank.rows([acting(job, "evaluate")] * job.rows):
            pipeline.run(count)
        sample.x = pipeline.x
        for _ in range(count):
            self._count_forward(rows=job.rows, tokens=job.tokens)
        advance = Advance(count, pipeline.is_over)
        self._note(job, sample, advance, lambda: pipeline.guess, outcome)

    def _note(
        self,
        job: Job,
        sample: Sample,
        advance: Advance,
        guess: Callable[[], Tensor],
        outcome: Outcome,
    ) -> None:
        """Write down how far a job has come; guess: what its picture (N, C) seems to be."""
        sample.evaluation += advance.evaluations
        outcome.advanced[job.id] = advance
        every = job.request.preview_every
        if self._shows and every and sample.evaluation % every == 0:
            self._show(job, guess(), outcome)
        if advance.is_over:
            sample.close()

    def _show(self, job: Job, guess: Tensor, outcome: Outcome) -> None:
        """Draw a small picture of what is to be expected; one that cannot be drawn is left out."""
        try:
            outcome.previews[job.id] = self._model.preview(guess, *job.drawn).numpy()
        except Exception:  # noqa: BLE001 - the picture itself goes on; a device that is lost tells it
            _log.warning("no preview of %s could be drawn", job.id, exc_info=True)

    def _count_forward(self, *, rows: int, tokens: int) -> None:
        self.tally.forward(rows=rows, tokens=tokens)
        if self._model.device.type == "cuda":  # a launch is no evaluation
            torch.cuda.synchronize(self._model.device)


def _sampling(
    job: Job, sigmas: Sequence[float], x: Tensor, noise: samplers.NoiseSource
) -> samplers.Sampling:
    """The sampler of a job, from x on."""
    return samplers.start(job.params.sampler, x, sigmas, noise, job.params.eta)
