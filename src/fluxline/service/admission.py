"""How much may come in: the bound of the queue, what a caller may ask for, and their time."""

from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from fluxline.errors import DeadlineExceeded, QueueFull
from fluxline.jobs import Limits
from fluxline.service.quota import Quota
from fluxline.service.register import Register
from fluxline.service.terms import Caller, Terms

T = TypeVar("T")


class Admission:
    """Refuses what is too much. Lives on one event loop.

    queue_limit: requests that may wait. queue_s: how long their work may take.
    """

    def __init__(self, register: Register, *, queue_limit: int, queue_s: float) -> None:
        self._register, self._quota = register, Quota()
        self.queue_limit, self._queue_s = queue_limit, queue_s
        self._at_the_door = 0  # requests that wait for the model

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count somebody who waits for the model. Raises QueueFull."""
        self.vet(0.0)
        self._at_the_door += 1
        try:
            yield
        finally:
            self._at_the_door -= 1

    @contextmanager
    def granted(
        self,
        work: float,
        caller: Caller,
        terms: Terms | None = None,
        *,
        of_profile: int | None = None,
    ) -> Iterator[Limits]:
        """Let work in, within the limits that the job store keeps for all servers together.

        of_profile: requests that may wait for its profile. It is not counted if it is refused all
        the same. Raises QueueFull, DeadlineExceeded.
        """
        self.vet(work)
        if terms is not None:
            self._refuse_late(work, terms)
        with self._quota.spent(caller.owner, caller.rate, work):
            yield self._limits(caller, of_profile)

    async def paced(self, asked: Awaitable[T], work: float) -> T:
        """Ask the job store to let work in; should it be full, say when to come again."""
        try:
            return await asked
        except QueueFull as exc:
            raise QueueFull(exc.message, retry_after_s=self.retry_s(work)) from None

    def retry_s(self, work: float) -> float:
        """In how many seconds work that was refused may be asked for again."""
        return self._register.pace.retry_s(work)

    def vet(self, work: float) -> None:
        """Refuse work while as many wait as may. Raises QueueFull."""
        waiting = self._register.waiting + self._at_the_door
        if waiting >= self.queue_limit:
            message = f"{waiting} requests are waiting; at most {self.queue_limit} may"
            raise QueueFull(message, retry_after_s=self.retry_s(work))

    def _refuse_late(self, work: float, terms: Terms) -> None:
        """Refuse what cannot be done in its caller's time."""
        limits = [limit for limit in (terms.deadline_s, terms.patience_s) if limit is not None]
        if not limits:
            return
        ahead = self._register.cost
        needed_s = self._register.pace.seconds(ahead + work)
        if needed_s > min(limits):
            raise DeadlineExceeded(
                f"it would take about {needed_s:.0f} s; you wait {min(limits):.0f} s",
                retry_after_s=self.retry_s(ahead),
            )

    def _limits(self, caller: Caller, of_profile: int | None) -> Limits:
        per_cost_s = self._register.pace.seconds(1.0)
        return Limits(
            waiting=self.queue_limit,
            cost=self._queue_s / per_cost_s if per_cost_s else float("inf"),
            of_owner=caller.most_open,
            of_profile=of_profile,
        )
