"""One replica on many ranks: the first decides, and all do the same, at the same time.

What travels is a plan by the ids of its jobs, and each request once: every rank makes the same jobs
of it, draws the same noise from the same seeds, and holds every sample whole. Only forwards are
shared.
"""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fluxline import wire
from fluxline.engine.intake import Intake
from fluxline.engine.job import Job, Outcome, Plan
from fluxline.engine.runner import Runner
from fluxline.engine.tune import Probe, decode_noise, nobody
from fluxline.errors import DeviceLost
from fluxline.models.base import DiffusionModel
from fluxline.parallel.crew import Crew
from fluxline.request import GenerationRequest

Tell = Callable[[wire.ToRank], None]


class Leader:
    """Runs plans here and has every other rank run them too. Thread: the engine's."""

    def __init__(self, runner: Runner, tell: Tell) -> None:
        self._runner, self._tell = runner, tell
        self._known: dict[str, GenerationRequest] = {}  # by the ids of jobs that others have made
        self._before = ""

    def execute(self, plan: Plan) -> Outcome:
        """Do what the plan says, everywhere. Raises DeviceLost."""
        if not (plan.admit and plan.evaluate):
            return self._everywhere(plan)
        # who was not admitted by all must show before anybody waits for him in a forward
        admitted = self._everywhere(replace(plan, evaluate=()))
        return admitted.then(self._everywhere(Plan(evaluate=plan.evaluate)))

    def _everywhere(self, plan: Plan) -> Outcome:
        for job_id in plan.drop:
            self._known.pop(job_id, None)
        fresh = [job for job in plan.admit if self._known.get(job.id) is not job.request]
        requests = {job.request.id: job.request for job in fresh}
        for request in requests.values():
            self._known.update((f"{request.id}/{k}", request) for k in range(request.count))
            self._tell(wire.Take(request))
        self._tell(
            wire.Replay(
                drop=plan.drop,
                decode=_ids(plan.decode),
                admit=_ids(plan.admit),
                evaluate=_ids(plan.evaluate),
                worn={job.id: _digests(job) for job in plan.admit if job.mix},
                before=self._before,
            )
        )
        outcome = self._runner.execute(plan)
        self._before = _said(outcome)
        return outcome


class Follower:
    """Does what the first rank does. Thread: its own, for as long as the replica lives."""

    def __init__(
        self, model: DiffusionModel[Any], runner: Runner, intake: Intake, crew: Crew
    ) -> None:
        self._runner, self._intake = runner, intake
        self._model = model
        self._probe = functools.cache(lambda: Probe(model, nobody, crew))
        self._jobs: dict[str, Job] = {}
        self._taken: list[Job] = []  # their ids may be those of jobs that are dropped next
        self._before = ""

    def obey(self, said: wire.ToRank) -> None:
        """Do it. Raises DeviceLost, what a forward of nothing raises, or what a request is refused
        with, which the first rank has not refused.
        """
        match said:
            case wire.TrialForward(rows):
                self._probe().once(rows)
            case wire.TrialDecoding(width, height):
                decode_noise(self._model, width, height)
            case wire.Prepare():
                self._probe()
            case wire.Take(request):
                unscored = replace(request, top_k=None)  # the first rank judges
                self._taken += self._intake.jobs_of(unscored)
            case wire.Replay():
                self._probe.cache_clear()  # the first rank has let its own go
                self._replay(said)

    def _replay(self, said: wire.Replay) -> None:
        """Run a plan. Raises DeviceLost if this rank has come to another end than the first."""
        if said.before != self._before:
            raise DeviceLost(f"the first rank had {said.before!r}, this one {self._before!r}")
        for job_id in said.drop:
            self._jobs.pop(job_id, None)
        self._jobs.update((job.id, job) for job in self._taken)
        self._taken.clear()
        for job in self._jobs_of(said.admit):
            _check_worn(job, said.worn.get(job.id, ()))
        outcome = self._runner.execute(
            Plan(
                drop=said.drop,
                decode=self._jobs_of(said.decode),
                admit=self._jobs_of(said.admit),
                evaluate=self._jobs_of(said.evaluate),
            )
        )
        self._before = _said(outcome)

    def _jobs_of(self, ids: tuple[str, ...]) -> tuple[Job, ...]:
        return tuple(self._jobs[job_id] for job_id in ids)


def _ids(jobs: tuple[Job, ...]) -> tuple[str, ...]:
    return tuple(job.id for job in jobs)


def _digests(job: Job) -> tuple[str, ...]:
    return tuple(adapter.digest for adapter, _ in job.mix)


def _check_worn(job: Job, theirs: tuple[str, ...]) -> None:
    """Raise DeviceLost where a file of a LoRA was another when the first rank read it."""
    names = [lora.name for lora in job.params.loras or () if lora.strength]
    for name, here, there in zip(names, _digests(job), theirs, strict=True):
        if here != there:
            message = f"for {job.id} the first rank has read LoRA {name!r} as {there}"
            raise DeviceLost(f"{message}, this one as {here}")


def _said(outcome: Outcome) -> str:
    """What ranks must agree in."""
    failed = sorted(f"{job_id}: {error.code}" for job_id, error in outcome.failed.items())
    ended = sorted(job_id for job_id, advance in outcome.advanced.items() if advance.is_over)
    return repr((failed, ended, sorted(outcome.no_room), outcome.batch_too_large))
