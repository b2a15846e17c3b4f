"""Who goes next: pure Python, no tensors, no clock of its own.

Three rules, in this order. *Fair between owners*: the owner who has had the least of the machine
goes first. *Shortest remaining work first* among an owner's jobs. *Ageing*: every second of waiting
counts as a second less of work, so that no stream of short jobs starves a long one. Priority is
worth `PRIORITY_S` seconds a level, in both. Work is tokens, made seconds by the measured rate.

All jobs that share a batch key with the one who goes next go along, up to the token budget. The
choice is made anew at every evaluation: a short job overtakes a long one at once, and the long
one's state simply waits.

Memory that runs out is no failure. A forward that did not fit is tried again with half as many
tokens, and the budget grows back. A job that did not fit alone waits until half as many others are
running, and from then on no more than those may run beside it.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fluxline.ability import Footprint
from fluxline.engine.job import Change, Job, Outcome, Plan, Stage
from fluxline.errors import OutOfMemory

PRIORITY_S = 30.0
RATE_MEMORY = 0.8  # how much of the old rate survives a new measurement
BOUNDLESS = sys.maxsize
DECODE_PIXELS = 2**21
CALM = 64  # evaluations that fit, before a halved budget is doubled again


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How much at once. A job larger than a budget runs alone."""

    batch_tokens: int  # in one forward
    resident_tokens: int  # of all admitted jobs together
    decode_pixels: int = DECODE_PIXELS  # in one VAE call
    footprint: Footprint | None = None  # what those take; None: not known, and all fit


class Scheduler:
    """Queue and running set. Thread: the engine's."""

    def __init__(self, budget: Budget, *, seconds_per_token: float = 1e-5) -> None:
        self._budget = budget
        self._batch_tokens = budget.batch_tokens
        self._seconds_per_token = seconds_per_token
        self._jobs: dict[str, Job] = {}
        self._served_s: dict[str, float] = {}  # owner -> seconds, relative to the others
        self._drop: list[str] = []
        self._calm = 0

    @property
    def is_idle(self) -> bool:
        """Nothing to do, not even memory to free."""
        return not self._jobs and not self._drop

    @property
    def batch_tokens(self) -> int:
        """The budget of a forward now; smaller for a while after one that did not fit."""
        return self._batch_tokens

    def add(self, job: Job, now: float) -> None:
        """Take a job in. An owner who comes back has no claim from the time he was away."""
        job.submitted_at = now
        self._jobs[job.id] = job
        if job.request.owner not in self._served_s:
            self._served_s[job.request.owner] = min(self._served_s.values(), default=0.0)

    def cancel(self, request_id: str) -> None:
        """End all jobs of a request. Harmless if there are none."""
        for job in [j for j in self._jobs.values() if j.request.id == request_id]:
            self._end(job)

    def next(self, now: float) -> Plan:
        """Choose what to do now."""
        order = self._ordered(now)
        admit = self._admissible(order)
        running = [job for job in order if job.stage is Stage.RUNNING or job in admit]
        kept = sum(job.kept_bytes for job in running)
        drop, self._drop = tuple(self._drop), []
        return Plan(
            drop=drop,
            admit=admit,
            evaluate=self._batch(running, kept),
            decode=self._decodable(order, kept),
        )

    def settle(self, plan: Plan, outcome: Outcome) -> list[Change]:
        """Write down what became of a plan, and say what its owners want to hear."""
        changes: list[Change] = []
        for batch in (plan.admit, plan.evaluate, plan.decode):
            for job in batch:
                job.beside = max(job.beside, len(batch) - 1)
        for job in plan.admit:
            if job.id not in outcome.failed and job.id not in outcome.no_room:
                changes.append(self._begin(job, outcome))
        running = {job.id for job in self._jobs.values() if job.stage is Stage.RUNNING}
        if outcome.batch_too_large:
            self._shrink(plan.evaluate)
        elif outcome.advanced:
            done = [job for job in plan.evaluate if job.id in outcome.advanced]
            tokens = {job: job.tokens * outcome.advanced[job.id].evaluations for job in done}
            self._account(tokens, outcome.evaluated_s)
        for job in plan.evaluate:
            if (advance := outcome.advanced.get(job.id)) is not None:
                job.done += advance.evaluations
                job.drawn_at = outcome.evaluated_at
                job.stage = Stage.DECODING if advance.is_over else Stage.RUNNING
                preview = outcome.previews.get(job.id)
                changes.append(Change(job, advanced=True, preview=preview))
        for job in plan.decode:
            if (picture := outcome.pictures.get(job.id)) is not None:
                self._end(job)
                changes.append(Change(job, picture=picture, score=outcome.scores.get(job.id)))
        for job in dict.fromkeys((*plan.decode, *plan.admit, *plan.evaluate)):
            error = outcome.failed.get(job.id)
            if job.id in outcome.no_room:
                error = self._make_room(job, beside=len(running - {job.id}))
            if error and job.stage is not Stage.ENDED:
                self._end(job)
                changes.append(Change(job, error=error))
        return changes

    def _ordered(self, now: float) -> list[Job]:
        boost = {
            owner: max(j.request.priority for j in self._jobs.values() if j.request.owner == owner)
            for owner in {job.request.owner for job in self._jobs.values()}
        }

        def urgency(job: Job) -> tuple[float, float]:
            owner, priority = job.request.owner, job.request.priority
            turn = self._served_s[owner] - PRIORITY_S * boost[owner]
            left_s = job.work_left * self._seconds_per_token
            return turn, left_s - (now - job.submitted_at) - PRIORITY_S * priority

        return sorted(self._jobs.values(), key=urgency)

    def _admissible(self, order: list[Job]) -> tuple[Job, ...]:
        resident = [job for job in order if job.is_resident]
        running = sum(job.stage is Stage.RUNNING for job in resident)
        most_beside = min((job.room_beside for job in resident), default=BOUNDLESS)
        tokens = sum(job.tokens for job in resident)
        waiting = [job for job in order if job.stage is Stage.WAITING]
        cramped = [job for job in waiting if job.room_beside < BOUNDLESS]
        owners = {job.request.owner for job in resident}
        held_back: set[str] = set()
        is_one_alone = any(job.is_alone and job.stage is Stage.RUNNING for job in resident)
        admit: list[Job] = []
        for job in cramped or waiting:  # whom memory has failed once goes before everybody else
            if running + len(admit) > min(job.room_beside, most_beside):
                break
            room = self._budget.resident_tokens - tokens
            if (resident or admit) and job.tokens > room:
                break
            if job.is_alone and (is_one_alone or not self._fit(resident, job.kept_bytes)):
                continue  # what it remembers is large, and one more would only wait
            owner = job.request.owner
            if owner in held_back or (owner in owners and job.tokens > room - self._batch_tokens):
                held_back.add(owner)  # a batch is kept free for others, who need not wait
                continue
            tokens += job.tokens
            owners.add(owner)
            most_beside = min(most_beside, job.room_beside)
            is_one_alone = is_one_alone or job.is_alone
            admit.append(job)
        return tuple(admit)

    def _fit(self, jobs: Sequence[Job], kept_bytes: int) -> bool:
        """Whether each could be drawn while so many bytes are held by another."""
        footprint = self._budget.footprint
        return footprint is None or all(
            kept_bytes + footprint.bytes(tokens=job.tokens, pixels=job.drawn[0] * job.drawn[1])
            <= footprint.free_bytes
            for job in jobs
        )

    def _batch(self, running: list[Job], kept_bytes: int) -> tuple[Job, ...]:
        running = [job for job in running if job.is_alone or self._fit([job], kept_bytes)]
        if not running:
            return ()
        key = running[0].key
        most = self._batch_tokens
        if kept_bytes and self._budget.footprint is not None:
            most = min(most, self._budget.footprint.tokens_beside(kept_bytes))
        batch: list[Job] = []
        tokens = 0
        for job in (job for job in running if job.key == key):
            if batch and tokens + job.tokens > most:
                break
            tokens += job.tokens
            batch.append(job)
        return tuple(batch)

    def _decodable(self, order: list[Job], kept_bytes: int) -> tuple[Job, ...]:
        running = sum(job.stage is Stage.RUNNING for job in order)
        ready = [
            job
            for job in order
            if job.stage is Stage.DECODING
            and running <= job.room_beside
            and self._fit([job], kept_bytes)
        ]
        if not ready:
            return ()
        size = ready[0].drawn
        most = self._budget.decode_pixels
        if kept_bytes and self._budget.footprint is not None:
            most = min(most, self._budget.footprint.pixels_beside(kept_bytes))
        fit = max(1, most // (size[0] * size[1]))
        return tuple(job for job in ready if job.drawn == size)[:fit]

    def _account(self, tokens: Mapping[Job, int], seconds: float) -> None:
        """Write down how long those tokens took, and whose they were."""
        measured = seconds / sum(tokens.values())
        self._seconds_per_token += (1 - RATE_MEMORY) * (measured - self._seconds_per_token)
        for job, own in tokens.items():
            if job.request.owner in self._served_s:
                self._served_s[job.request.owner] += measured * own
        self._calm += 1
        if self._calm >= CALM:
            self._calm = 0
            self._batch_tokens = min(2 * self._batch_tokens, self._budget.batch_tokens)

    def _begin(self, job: Job, outcome: Outcome) -> Change:
        job.stage = Stage.RUNNING
        job.admitted_at, job.encoded_at = outcome.admitted_at, outcome.encoded_at
        if (note := outcome.notes.get(job.id)) and note not in job.warnings:
            job.warnings += (note,)
        return Change(job, started=True)

    def _shrink(self, batch: tuple[Job, ...]) -> None:
        tokens = sum(job.tokens for job in batch)
        self._batch_tokens = max(1, min(self._batch_tokens, tokens) // 2)
        self._calm = 0

    def _make_room(self, job: Job, *, beside: int) -> OutOfMemory | None:
        """Let a job wait until half as many run beside it; an error if it did not fit alone.

        A job at sigma 0 holds next to nothing, and keeps it. Any other begins anew from its seed:
        what it held is what the others need to go on.
        """
        if not beside:
            width, height = job.drawn
            message = f"{width}x{height} does not fit into the device's memory"
            return OutOfMemory(f"{message}; ask for a smaller size")
        job.room_beside = min(job.room_beside, beside) // 2
        if job.stage is not Stage.DECODING:
            self._drop.append(job.id)
            job.stage, job.done = Stage.WAITING, 0
        return None

    def _end(self, job: Job) -> None:
        self._drop.append(job.id)
        job.stage = Stage.ENDED
        self._jobs.pop(job.id, None)
        owner = job.request.owner
        if not any(other.request.owner == owner for other in self._jobs.values()):
            self._served_s.pop(owner, None)
