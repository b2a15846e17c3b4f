"""How much the queue may hold, counted where all servers see it: in the database."""

from dataclasses import dataclass

from sqlalchemy import Connection, and_, func, select

from fluxline.errors import QueueFull
from fluxline.jobs.table import JobState, jobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the queue may hold at most. of_owner counts what waits and what runs; of_profile what
    waits for the profile of the job that is let in."""

    waiting: int
    cost: float = float("inf")
    of_profile: int | None = None
    of_owner: int | None = None


def refuse_beyond(db: Connection, limits: Limits, *, owner: str, profile: str, cost: float) -> None:
    """Refuse a job that the queue has no room for. Raises QueueFull."""
    waiting = select(func.count(), func.coalesce(func.sum(jobs.c.cost), 0.0)).where(
        jobs.c.state == JobState.QUEUED
    )
    count, ahead = db.execute(waiting).one()
    if count >= limits.waiting:
        message = f"{count} requests are waiting; at most {limits.waiting} may"
        raise QueueFull(message, retry_after_s=1.0)
    if ahead and ahead + cost > limits.cost:
        raise QueueFull("the queue holds as much work as it may", retry_after_s=1.0)
    if limits.of_profile is not None:
        same = and_(jobs.c.state == JobState.QUEUED, jobs.c.profile == profile)
        count = db.scalar(select(func.count()).where(same)) or 0
        if count >= limits.of_profile:
            message = f"{count} requests wait for {profile}; at most {limits.of_profile} may"
            raise QueueFull(message, retry_after_s=1.0)
    if limits.of_owner is not None:
        states = (JobState.QUEUED, JobState.RUNNING)
        mine = and_(jobs.c.owner == owner, jobs.c.state.in_(states))
        count = db.scalar(select(func.count()).where(mine)) or 0
        if count >= limits.of_owner:
            message = f"{count} requests of this key are open; at most {limits.of_owner} may be"
            raise QueueFull(message, retry_after_s=1.0)
