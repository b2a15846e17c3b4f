"""The other ranks of a replica, as processes: started by the worker that is the first."""

import contextlib
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence

PARENT = "FLUXLINE_RANK_PARENT"
"""Of the environment of a rank: the process that it may not outlive."""
WORDS_S = 0.5  # what is lost next is only its consequence, or its cause: both are logged
REAP_S = 1.0  # for a process that was killed to be gone

_log = logging.getLogger(__name__)


class Ranks:
    """Starts the other ranks of a replica, and ends them with this process when one is lost.

    argv: of a worker, which a rank is told too. die: ends this process at once.
    """

    def __init__(self, argv: Sequence[str], die: Callable[[], None]) -> None:
        self._argv, self._die = argv, die
        self._processes: list[subprocess.Popen[bytes]] = []
        self._is_ending = False

    def start(self, rank: int, variables: Mapping[str, str]) -> None:
        """Start one with these variables. It ends when this thread does."""
        command = [sys.executable, "-P", "-m", "fluxline.worker.rank", *self._argv]
        process = subprocess.Popen(
            command,
            env={**os.environ, **variables, PARENT: str(os.getpid())},
            stdin=subprocess.DEVNULL,
        )
        self._processes.append(process)
        threading.Thread(target=self._reap, args=(rank, process), daemon=True).start()

    def lost(self, why: str) -> None:
        """Log why the replica ends, and what else is said just now; then end all ranks of it.

        Any thread, and several at once: who loses one rank soon loses others.
        """
        _log.error("%s: the replica ends", why)
        time.sleep(WORDS_S)
        self._is_ending = True
        for process in self._processes:
            process.kill()  # even one that is stopped
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(REAP_S)
        self._die()

    def stumbled(self) -> None:
        """The same where this rank cannot go on, which was logged."""
        self.lost("rank 0 cannot go on")

    def _reap(self, rank: int, process: subprocess.Popen[bytes]) -> None:
        code = process.wait()
        if not self._is_ending:
            how = f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"
            self.lost(f"rank {rank} {how}")
