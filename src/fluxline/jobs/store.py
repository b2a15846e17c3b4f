"""Jobs on disk: accepted, claimed under a lease, finished once.

Every write of somebody who holds a job carries the fence of their claim; once the lease is lost
and the job claimed again, the older fence writes nothing more. So a job may be drawn twice, but
is finished once. All methods block; any thread may call them.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import (
    Connection,
    RowMapping,
    Select,
    and_,
    delete,
    func,
    insert,
    or_,
    select,
    update,
)

from fluxline.errors import InvalidParams, WorkerDied
from fluxline.jobs.database import Database
from fluxline.jobs.limits import Limits, refuse_beyond
from fluxline.jobs.table import OVER, JobRow, JobState, NewJob, jobs, sources, webhooks
from fluxline.jobs.turns import is_fleeting, next_in_turn

_UNTOLD = {"attempts": 0, "next_at": 0.0, "delivered_at": None, "error": None}

FIRST_LEASE_S = 60.0  # of a job whose caller waits, until its server first renews it
AT_ONCE = 1000  # ids that one statement names; PostgreSQL takes 65 535
MAX_ATTEMPTS = 10  # claims; a worker that dies is counted by the fleet, and much sooner


class JobStore:
    """The table of jobs in a database."""

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.time) -> None:
        self._database, self._clock = database, clock

    # ---- the callers' side

    def accept(self, new: NewJob, limits: Limits) -> tuple[JobRow, bool]:
        """Write a job down and return it, and whether it is new.

        A job of the same owner and idempotency key is returned in its place. Raises QueueFull
        beyond the limits, InvalidParams when the key was used for something else, NotReady when
        the database cannot be written.
        """
        with self._database.writing_alone() as db:  # the limits are those of all servers together
            if known := self._known(db, new.owner, new.idempotency_key, new.fingerprint):
                return known, False
            refuse_beyond(db, limits, owner=new.owner, profile=new.profile, cost=new.cost)
            row = {
                **asdict(new),
                "created_at": self._clock(),
                "state": JobState.QUEUED,
                "attempts": 0,
                "fence": 0,
                "cancel_requested": False,
                "lease_until": self._clock() + FIRST_LEASE_S,
            }
            webhook, source = row.pop("webhook"), row.pop("source")
            db.execute(insert(jobs).values(row))
            if source is not None:
                db.execute(insert(sources).values(job_id=new.id, data=source))
            if webhook:
                told = {"job_id": new.id, **webhook, **_UNTOLD}
                db.execute(insert(webhooks).values(told))
            found = self._one(db, new.id)
            assert found is not None
            return found, True

    def get(self, job_id: str, *, owner: str | None = None) -> JobRow | None:
        """The job of that id, if it is this owner's; owner None: anybody's."""
        with self._database.reading() as db:
            found = self._one(db, job_id)
        return found if found and owner in (None, found.owner) else None

    def known(self, owner: str, idempotency_key: str, fingerprint: str) -> JobRow | None:
        """The job that was accepted under that key. Raises InvalidParams if it asked for else."""
        with self._database.reading() as db:
            return self._known(db, owner, idempotency_key, fingerprint)

    def source(self, job_id: str) -> bytes | None:
        """The pictures that a job is drawn from, if they were kept."""
        query = select(sources.c.data).where(sources.c.job_id == job_id)
        with self._database.reading() as db:
            return db.scalar(query)

    def those(self, ids: Sequence[str]) -> list[JobRow]:
        """The jobs of those ids that are there, in any order."""
        return [JobRow.of(row) for row in self._read(select(jobs), ids)]

    def open_among(self, ids: Sequence[str]) -> set[str]:
        """Those of them whose jobs are there and not over."""
        found = self._read(select(jobs.c.id, jobs.c.state), ids)
        return {row["id"] for row in found if row["state"] not in OVER}

    def recent(
        self,
        *,
        owner: str | None = None,
        states: Sequence[JobState] = (),
        before: float | None = None,
        limit: int = 50,
    ) -> list[JobRow]:
        """Jobs, the newest first."""
        query = select(jobs).order_by(jobs.c.created_at.desc(), jobs.c.id).limit(limit)
        if owner is not None:
            query = query.where(jobs.c.owner == owner)
        if states:
            query = query.where(jobs.c.state.in_(states))
        if before is not None:
            query = query.where(jobs.c.created_at < before)
        with self._database.reading() as db:
            return [JobRow.of(row) for row in db.execute(query).mappings()]

    def cancel(self, job_id: str, *, owner: str | None = None) -> JobRow | None:
        """Cancel a job that waits; ask the holder of one that runs. None: no such job."""
        with self._database.writing() as db:
            found = self._locked(db, job_id)
            if found is None or owner not in (None, found.owner):
                return None
            if found.state == JobState.QUEUED:
                self._end(db, jobs.c.id == job_id, JobState.CANCELLED)
            elif found.state == JobState.RUNNING:
                db.execute(update(jobs).where(jobs.c.id == job_id).values(cancel_requested=True))
            return self._one(db, job_id)

    def retry(self, job_id: str, limits: Limits, *, owner: str | None = None) -> JobRow | None:
        """Queue a failed or cancelled job again, from its seed. None: no such job.

        Whoever asked first waits no more, so nobody need be there and no time is set. Raises
        QueueFull.
        """
        with self._database.writing_alone() as db:
            found = self._locked(db, job_id)
            if found is None or owner not in (None, found.owner):
                return None
            if found.state in (JobState.FAILED, JobState.CANCELLED):
                refuse_beyond(db, limits, owner=found.owner, profile=found.profile, cost=found.cost)
                db.execute(
                    update(jobs)
                    .where(jobs.c.id == job_id)
                    .values(
                        state=JobState.QUEUED,
                        attempts=0,
                        is_attended=False,
                        deadline=None,
                        cancel_requested=False,
                        finished_at=None,
                        error_code=None,
                        error_message=None,
                    )
                )
                db.execute(update(webhooks).where(webhooks.c.job_id == job_id).values(_UNTOLD))
            return self._one(db, job_id)

    def counts(self) -> Mapping[JobState, int]:
        """How many jobs are in each state."""
        query = select(jobs.c.state, func.count()).group_by(jobs.c.state)
        with self._database.reading() as db:
            return {JobState(state): count for state, count in db.execute(query)}

    # ---- the holders' side

    def claim(
        self,
        holder: str,
        *,
        profiles: Sequence[str],
        besides: Sequence[str] = (),
        lease_s: float,
        limit: int,
    ) -> list[JobRow]:
        """Take up to `limit` jobs of those profiles, and of some besides that wait for others: by
        priority, then in turn between owners, then by age."""
        with self._database.writing_alone() as db:  # who else claims would choose the same
            ids = next_in_turn(db, holder, profiles, besides, most=limit)
            if not ids:
                return []
            waiting = select(jobs.c.id).where(jobs.c.id.in_(ids), jobs.c.state == JobState.QUEUED)
            free = list(db.scalars(waiting.with_for_update(skip_locked=True)))
            now = self._clock()
            db.execute(
                update(jobs)
                .where(jobs.c.id.in_(free))
                .values(
                    state=JobState.RUNNING,
                    attempts=jobs.c.attempts + 1,
                    fence=jobs.c.fence + 1,
                    holder=holder,
                    lease_until=now + lease_s,
                    started_at=func.coalesce(jobs.c.started_at, now),
                )
            )
            rows = db.execute(select(jobs).where(jobs.c.id.in_(free))).mappings()
            return sorted((JobRow.of(row) for row in rows), key=lambda row: ids.index(row.id))

    def waiting(self, holder: str, profile: str, *, limit: int) -> list[JobRow]:
        """The first `limit` jobs that this holder would claim of a profile, in any order."""
        with self._database.reading() as db:
            mine = jobs.c.id.in_(next_in_turn(db, holder, [profile], most=limit))
            return [JobRow.of(row) for row in db.execute(select(jobs).where(mine)).mappings()]

    def renew(
        self, holder: str, tokens: Sequence[tuple[str, int]], *, lease_s: float
    ) -> dict[str, bool]:
        """Renew leases. For each job still held: whether its caller wants it cancelled.

        Jobs that wait with their caller are renewed too: while this server lives, so does the line.
        """
        held: dict[str, bool] = {}
        with self._database.writing() as db:
            waits = and_(jobs.c.state == JobState.QUEUED, jobs.c.holder == holder, is_fleeting)
            until = {"lease_until": self._clock() + lease_s}
            db.execute(update(jobs).where(waits).values(until))
            for token in tokens:
                mine = _held(token)
                changed = db.execute(update(jobs).where(mine).values(until))
                if changed.rowcount:
                    held[token[0]] = bool(db.scalar(select(jobs.c.cancel_requested).where(mine)))
        return held

    def finish(self, token: tuple[str, int], result: str) -> bool:
        """Write a job's result down. False: the lease was lost, somebody else finishes it."""
        return self._end_held(token, JobState.DONE, result=result)

    def fail(self, token: tuple[str, int], code: str, message: str) -> bool:
        """Write down why a job failed. False: the lease was lost."""
        return self._end_held(token, JobState.FAILED, error_code=code, error_message=message)

    def drop(self, token: tuple[str, int]) -> bool:
        """Write down that a job was cancelled as its caller asked. False: the lease was lost."""
        return self._end_held(token, JobState.CANCELLED)

    def put_back(self, token: tuple[str, int]) -> bool:
        """Give a job back to the queue, its attempt not counted. False: the lease was lost.

        One that its caller wants no more is cancelled instead.
        """
        with self._database.writing() as db:
            unwanted = and_(_held(token), jobs.c.cancel_requested)
            if self._end(db, unwanted, JobState.CANCELLED):
                return True
            changed = db.execute(
                update(jobs)
                .where(_held(token))
                .values(state=JobState.QUEUED, attempts=jobs.c.attempts - 1)
            )
            return bool(changed.rowcount)

    def end_expired_leases(self) -> list[JobRow]:
        """End the leases that ran out, and return their jobs.

        They are queued again; those that had their attempts fail, named as the cause, and those
        whose caller waited on a connection that is gone are cancelled.
        """
        return self._end_leases(jobs.c.lease_until < self._clock())

    def end_leases_of(self, holder: str) -> list[JobRow]:
        """End all leases of a holder that is known to be gone, as if they had run out."""
        return self._end_leases(jobs.c.holder == holder)

    def forget(self, *, finished_before: float, limit: int) -> int:
        """Delete up to `limit` jobs that were over before then, and return how many they were."""
        with self._database.writing() as db:
            old = and_(jobs.c.state.in_(OVER), jobs.c.finished_at < finished_before)
            found = select(jobs.c.id).where(old).limit(limit).with_for_update(skip_locked=True)
            ids = list(db.scalars(found))
            for table in (webhooks, sources):
                db.execute(delete(table).where(table.c.job_id.in_(ids)))
            db.execute(delete(jobs).where(jobs.c.id.in_(ids)))
            return len(ids)

    # ---- jobs of profiles that are not served

    @property
    def is_shared(self) -> bool:
        """Whether other servers, which may have other profiles, may use it at the same time."""
        return self._database.is_shared

    def strange(self, profiles: Sequence[str]) -> list[JobRow]:
        """The jobs that wait for other profiles than those, in any order."""
        query = select(jobs).where(jobs.c.state == JobState.QUEUED, jobs.c.profile.not_in(profiles))
        with self._database.reading() as db:
            return [JobRow.of(row) for row in db.execute(query).mappings()]

    def begun_since(self, when: float) -> set[str]:
        """The profiles of which somebody draws a job, or has begun one since then."""
        is_seen = or_(jobs.c.state == JobState.RUNNING, jobs.c.started_at >= when)
        with self._database.reading() as db:
            return set(db.scalars(select(jobs.c.profile).where(is_seen).distinct()))

    def adopt(self, job_id: str, heir: str) -> None:
        """Give a job that waits to another profile."""
        with self._database.writing() as db:
            db.execute(update(jobs).where(_waits(job_id)).values(profile=heir))

    def give_up(self, job_id: str, code: str, message: str) -> bool:
        """Fail a job that waits. False: it waits no more."""
        with self._database.writing() as db:
            told = {"error_code": code, "error_message": message}
            return self._end(db, _waits(job_id), JobState.FAILED, **told)

    # ---- inside

    def _end_leases(self, is_lost: Any) -> list[JobRow]:
        is_running = jobs.c.state == JobState.RUNNING
        is_leased = or_(is_running, and_(jobs.c.state == JobState.QUEUED, is_fleeting))
        lost = and_(is_leased, is_lost)
        gave_up = f"the job was begun {MAX_ATTEMPTS} times and never ended"
        with self._database.writing() as db:
            ids = list(db.scalars(select(jobs.c.id).where(lost).with_for_update(skip_locked=True)))
            mine = jobs.c.id.in_(ids)
            is_gone = or_(jobs.c.cancel_requested, is_fleeting)
            self._end(db, and_(mine, is_gone), JobState.CANCELLED)
            running = and_(mine, is_running)
            self._end(
                db,
                and_(running, jobs.c.attempts >= MAX_ATTEMPTS),
                JobState.FAILED,
                error_code=WorkerDied.code,
                error_message=gave_up,
            )
            again = {"state": JobState.QUEUED, "holder": None, "lease_until": None}
            db.execute(update(jobs).where(running).values(again))
            rows = db.execute(select(jobs).where(mine)).mappings()
            return [JobRow.of(row) for row in rows]

    def _end(self, db: Connection, which: Any, state: JobState, **values: Any) -> bool:
        if state != JobState.FAILED:  # which may be retried
            ended = select(jobs.c.id).where(which)
            db.execute(delete(sources).where(sources.c.job_id.in_(ended)))
        values |= {"state": state, "finished_at": self._clock(), "lease_until": None}
        return bool(db.execute(update(jobs).where(which).values(values)).rowcount)

    def _end_held(self, token: tuple[str, int], state: JobState, **values: Any) -> bool:
        """End a job that is held. The same end again, its answer having been lost, is one end."""
        job_id, fence = token
        is_same = [jobs.c[name] == value for name, value in values.items()]
        ended = and_(jobs.c.id == job_id, jobs.c.fence == fence, jobs.c.state == state, *is_same)
        with self._database.writing() as db:
            if self._end(db, _held(token), state, **values):
                return True
            return bool(db.scalar(select(func.count()).where(ended)))

    def _read(self, query: Select[Any], ids: Sequence[str]) -> list[RowMapping]:
        """What a query says of those ids, asked of some at a time."""
        found: list[RowMapping] = []
        with self._database.reading() as db:
            for first in range(0, len(ids), AT_ONCE):
                mine = jobs.c.id.in_(ids[first : first + AT_ONCE])
                found += db.execute(query.where(mine)).mappings()
        return found

    def _locked(self, db: Connection, job_id: str) -> JobRow | None:
        """One job, which nobody else writes before this transaction is over."""
        if found := self._one(db, job_id):
            db.execute(select(jobs.c.id).where(jobs.c.id == job_id).with_for_update())
            return self._one(db, found.id)
        return None

    def _one(self, db: Connection, job_id: str) -> JobRow | None:
        if "\0" in job_id:  # which PostgreSQL takes for no text
            return None
        row = db.execute(select(jobs).where(jobs.c.id == job_id)).mappings().first()
        return None if row is None else JobRow.of(row)

    def _known(
        self, db: Connection, owner: str, key: str | None, fingerprint: str
    ) -> JobRow | None:
        if key is None:
            return None
        same = and_(jobs.c.owner == owner, jobs.c.idempotency_key == key)
        row = db.execute(select(jobs).where(same)).mappings().first()
        if row is not None and row["fingerprint"] != fingerprint:
            message = "this Idempotency-Key was used for another request"
            raise InvalidParams(message, field="Idempotency-Key")
        return None if row is None else JobRow.of(row)


def _held(token: tuple[str, int]) -> Any:
    job_id, fence = token
    return and_(jobs.c.id == job_id, jobs.c.fence == fence, jobs.c.state == JobState.RUNNING)


def _waits(job_id: str) -> Any:
    return and_(jobs.c.id == job_id, jobs.c.state == JobState.QUEUED)
