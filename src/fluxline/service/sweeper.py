"""Forgets what is old: jobs that were over long ago, and pictures that are too old or too many."""

import asyncio
import logging
import time
from datetime import UTC, datetime

from fluxline.jobs import JobStore
from fluxline.service.clerk import Clerk, endured
from fluxline.storage import Pictures

EVERY_S = 600.0
AT_ONCE = 500  # jobs: others wait for the database meanwhile
DAY_S = 86_400.0

_log = logging.getLogger(__name__)


class Sweeper:
    """Sweeps now and then while it runs. keep_days, max_bytes: None: for ever, however many."""

    def __init__(
        self,
        store: JobStore,
        clerk: Clerk,
        pictures: Pictures,
        *,
        keep_days: float | None,
        max_bytes: int | None,
    ) -> None:
        self._store, self._clerk, self._pictures = store, clerk, pictures
        self._keep_s = None if keep_days is None else DAY_S * keep_days
        self._max_bytes = max_bytes

    async def run(self) -> None:
        """Sweep for ever. A store that does not answer is swept the next time."""
        while True:
            await endured(self.sweep())
            await asyncio.sleep(EVERY_S)

    async def sweep(self) -> None:
        """Forget what is old now. Raises NotReady, StorageError."""
        if self._keep_s is not None:
            before = time.time() - self._keep_s
            total = 0
            while count := await self._clerk.do(
                self._store.forget, finished_before=before, limit=AT_ONCE
            ):
                total += count
            if total:
                day = datetime.fromtimestamp(before, UTC).date()
                _log.info("forgot %d jobs that were over before %s", total, day)
        if self._keep_s is not None or self._max_bytes is not None:
            gone = await self._pictures.sweep(max_age_s=self._keep_s, max_bytes=self._max_bytes)
            if gone:
                _log.info("deleted %d pictures", len(gone))
