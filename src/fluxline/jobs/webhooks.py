"""Who wants to be told when a job is over, and whether they were.

All methods block; any thread may call them.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import and_, select, update

from fluxline.jobs.database import Database
from fluxline.jobs.table import OVER, JobRow, jobs, webhooks


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """What is known of one; the table's columns say what each field means."""

    job_id: str
    url: str
    secret: str | None
    base_url: str
    attempts: int
    delivered_at: float | None
    error: str | None


class WebhookStore:
    """The table of webhooks in a database."""

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.time) -> None:
        self._database, self._clock = database, clock

    def of(self, job_id: str) -> Webhook | None:
        """The webhook of a job. Raises NotReady."""
        query = select(*_fields).where(webhooks.c.job_id == job_id)
        with self._database.reading() as db:
            row = db.execute(query).mappings().first()
        return None if row is None else Webhook(**dict(row))

    def take(self, *, again_s: Sequence[float], limit: int) -> list[tuple[JobRow, Webhook]]:
        """Jobs that are over and whose caller must be told now, with this attempt counted.

        Whoever takes one has again_s[attempts] seconds for it; then it is due again, until all of
        again_s have passed. So a delivery may arrive twice, and no death of ours loses it. Raises
        NotReady.
        """
        now = self._clock()
        due = (
            select(webhooks.c.job_id)
            .join(jobs, jobs.c.id == webhooks.c.job_id)
            .where(
                jobs.c.state.in_(OVER),
                webhooks.c.delivered_at.is_(None),
                webhooks.c.next_at <= now,
                webhooks.c.attempts < len(again_s),
            )
            .order_by(webhooks.c.next_at)
            .limit(limit)
            .with_for_update(skip_locked=True, of=webhooks)
        )
        with self._database.writing() as db:
            taken = []
            for job_id in list(db.scalars(due)):
                mine = webhooks.c.job_id == job_id
                hook = Webhook(**dict(db.execute(select(*_fields).where(mine)).mappings().one()))
                again = {"attempts": hook.attempts + 1, "next_at": now + again_s[hook.attempts]}
                db.execute(update(webhooks).where(mine).values(again))
                row = db.execute(select(jobs).where(jobs.c.id == job_id)).mappings().one()
                taken.append((JobRow.of(row), hook))
            return taken

    def record(self, job_id: str, fence: int, error: str | None) -> None:
        """Write down how an attempt went; error None: it was delivered.

        Nothing is written if the job was retried since, for its next end is another. Raises
        NotReady.
        """
        delivered_at = None if error else self._clock()
        is_same = select(jobs.c.id).where(
            and_(jobs.c.id == job_id, jobs.c.fence == fence, jobs.c.state.in_(OVER))
        )
        with self._database.writing() as db:
            db.execute(
                update(webhooks)
                .where(webhooks.c.job_id.in_(is_same))
                .values(delivered_at=delivered_at, error=error)
            )


_fields = [webhooks.c[name] for name in Webhook.__dataclass_fields__]
