"""Who goes next: pure Python, no tensors, no clock of its own.

Three rules, in this order. *Fair between owners*: the owner who has had the least of the machine
goes first. *Shortest remaining work first* among an owner's jobs. *Ageing*: every second of waiting
counts as a second less of work, so that no stream of short jobs starves a long one. Priority is
worth `PRIORITY_S` seconds a level, in both. Work is tokens, made seconds by the measured rate.

All jobs that share a batch key with the one who goes next go along, up to the token budget. The
choice is made anew at every evaluation: a short job overtakes a long one at once, and the long
one's state simply waits.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from fluxline.engine.job import Change, Job, Outcome, Plan, Stage
from fluxline.errors import OutOfMemory

PRIORITY_S = 30.0
RATE_MEMORY = 0.8  # how much of the old rate survives a new measurement


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How much at once. A job larger than a budget runs alone."""

    batch_tokens: int  # in one forward
    resident_tokens: int  # of all admitted jobs together
    decode_pixels: int = 2**21  # in one VAE call


class Scheduler:
    """Queue and running set. Thread: the engine's."""

    def __init__(self, budget: Budget, *, seconds_per_token: float = 1e-5) -> None:
        self._budget = budget
        self._batch_tokens = budget.batch_tokens
        self._seconds_per_token = seconds_per_token
        self._jobs: dict[str, Job] = {}
        self._served_s: dict[str, float] = {}  # owner -> seconds, relative to the others
        self._drop: list[str] = []

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def is_idle(self) -> bool:
        """Nothing to do, not even memory to free."""
        return not self._jobs and not self._drop

    @property
    def batch_tokens(self) -> int:
        """The budget of a forward now; halved by every batch that did not fit in memory."""
        return self._batch_tokens

    def add(self, job: Job, now: float) -> None:
        """Take a job in. An owner who comes back has no claim from the time he was away."""
        job.submitted_at = now
        self._jobs[job.id] = job
        if job.owner not in self._served_s:
            self._served_s[job.owner] = min(self._served_s.values(), default=0.0)

    def cancel(self, request_id: str) -> None:
        """End all jobs of a request. Harmless if there are none."""
        for job in [j for j in self._jobs.values() if j.request_id == request_id]:
            self._end(job)

    def predicted_s(self) -> float:
        """Seconds until everything now accepted is evaluated."""
        return self._seconds_per_token * sum(job.work_left for job in self._jobs.values())

    def next(self, now: float) -> Plan:
        """Choose what to do now."""
        order = self._ordered(now)
        admit = self._admissible(order)
        running = [job for job in order if job.stage is Stage.RUNNING or job in admit]
        drop, self._drop = tuple(self._drop), []
        return Plan(
            drop=drop,
            admit=admit,
            evaluate=self._batch(running),
            decode=self._decodable(order),
        )

    def settle(self, plan: Plan, outcome: Outcome) -> list[Change]:
        """Write down what became of a plan, and say what its owners want to hear."""
        changes = [
            Change(job, started=True, note=outcome.notes.get(job.id))
            for job in plan.admit
            if job.id not in outcome.failed
        ]
        for job in plan.admit:
            job.stage = Stage.RUNNING
        if outcome.out_of_memory:
            changes += self._shrink(plan.evaluate)
        elif outcome.advanced:
            self._account(plan.evaluate, outcome.seconds)
        for job in plan.evaluate:
            if (finished := outcome.advanced.get(job.id)) is not None:
                job.done += 1
                job.stage = Stage.DECODING if finished else Stage.RUNNING
                preview = outcome.previews.get(job.id)
                changes.append(Change(job, advanced=True, preview=preview))
        for job in plan.decode:
            if (picture := outcome.pictures.get(job.id)) is not None:
                self._end(job)
                changes.append(Change(job, picture=picture))
        for job in (*plan.admit, *plan.evaluate, *plan.decode):
            if (error := outcome.failed.get(job.id)) and job.stage is not Stage.ENDED:
                self._end(job)
                changes.append(Change(job, error=error))
        return changes

    def _ordered(self, now: float) -> list[Job]:
        boost = {
            owner: max(job.priority for job in self._jobs.values() if job.owner == owner)
            for owner in {job.owner for job in self._jobs.values()}
        }

        def urgency(job: Job) -> tuple[float, float]:
            turn = self._served_s[job.owner] - PRIORITY_S * boost[job.owner]
            left_s = job.work_left * self._seconds_per_token
            return turn, left_s - (now - job.submitted_at) - PRIORITY_S * job.priority

        return sorted(self._jobs.values(), key=urgency)

    def _admissible(self, order: list[Job]) -> tuple[Job, ...]:
        resident = sum(job.tokens for job in order if job.stage is not Stage.WAITING)
        admit: list[Job] = []
        for job in order:
            if job.stage is not Stage.WAITING:
                continue
            if resident and resident + job.tokens > self._budget.resident_tokens:
                break
            resident += job.tokens
            admit.append(job)
        return tuple(admit)

    def _batch(self, running: list[Job]) -> tuple[Job, ...]:
        if not running:
            return ()
        key = running[0].key
        batch: list[Job] = []
        tokens = 0
        for job in (job for job in running if job.key == key):
            if batch and tokens + job.tokens > self._batch_tokens:
                break
            tokens += job.tokens
            batch.append(job)
        return tuple(batch)

    def _decodable(self, order: list[Job]) -> tuple[Job, ...]:
        ready = [job for job in order if job.stage is Stage.DECODING]
        if not ready:
            return ()
        size = ready[0].drawn
        fit = max(1, self._budget.decode_pixels // (size[0] * size[1]))
        return tuple(job for job in ready if job.drawn == size)[:fit]

    def _account(self, batch: Iterable[Job], seconds: float) -> None:
        tokens = sum(job.tokens for job in batch)
        measured = seconds / tokens
        self._seconds_per_token += (1 - RATE_MEMORY) * (measured - self._seconds_per_token)
        for job in batch:
            if job.owner in self._served_s:
                self._served_s[job.owner] += measured * job.tokens

    def _shrink(self, batch: tuple[Job, ...]) -> list[Change]:
        """Halve the budget and try again; a job that does not fit alone never will."""
        if len(batch) > 1:
            tokens = sum(job.tokens for job in batch)
            self._batch_tokens = max(1, min(self._batch_tokens, tokens) // 2)
            return []
        (job,) = batch
        self._end(job)
        width, height = job.drawn
        message = f"{width}x{height} does not fit into the device's memory; ask for a smaller size"
        return [Change(job, error=OutOfMemory(message))]

    def _end(self, job: Job) -> None:
        self._drop.append(job.id)
        job.stage = Stage.ENDED
        self._jobs.pop(job.id, None)
        if not any(other.owner == job.owner for other in self._jobs.values()):
            self._served_s.pop(job.owner, None)
