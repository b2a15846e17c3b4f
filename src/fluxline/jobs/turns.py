"""Whose turn it is: the one question of the queue that is more than a line of SQL."""

import functools
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Select, and_, bindparam, func, not_, or_, select

from fluxline.jobs.table import JobState, jobs

is_fleeting = and_(jobs.c.is_attended, jobs.c.idempotency_key.is_(None))
"""Its caller waits on a connection to the server that accepted it, and nobody can come back."""


def next_in_turn(
    db: Connection,
    asks: str,
    profiles: Sequence[str],
    besides: Sequence[str] = (),
    *,
    most: int,
) -> list[str]:
    """Who is next of some profiles, and of jobs besides, for the holder that asks: ids, by
    priority; of equals, owners in turn, counting what runs of theirs already, and of one owner by
    rank.

    What somebody waits for on a line to another server is that one's to draw.
    """
    asked = {"asks": asks, "profiles": list(profiles), "besides": list(besides), "most": most}
    return list(db.scalars(_query(), asked))


@functools.cache  # to put it together takes as long as to ask it
def _query() -> Select[Any]:
    running = (
        select(jobs.c.owner, func.count().label("running"))
        .where(jobs.c.state == JobState.RUNNING)
        .group_by(jobs.c.owner)
        .subquery()
    )
    own = [jobs.c.priority.desc(), jobs.c.rank.desc(), jobs.c.created_at, jobs.c.id]
    place = func.row_number().over(partition_by=jobs.c.owner, order_by=own) + func.coalesce(
        running.c.running, 0
    )
    waiting = (
        select(jobs.c.id, jobs.c.priority, jobs.c.created_at, place.label("place"))
        .outerjoin(running, running.c.owner == jobs.c.owner)
        .where(
            jobs.c.state == JobState.QUEUED,
            or_(
                jobs.c.profile.in_(bindparam("profiles", expanding=True)),
                jobs.c.id.in_(bindparam("besides", expanding=True)),
            ),
            or_(not_(is_fleeting), jobs.c.holder == bindparam("asks")),
        )
        .subquery()
    )
    return (
        select(waiting.c.id)
        .order_by(waiting.c.priority.desc(), waiting.c.place, waiting.c.created_at, waiting.c.id)
        .limit(bindparam("most"))
    )
