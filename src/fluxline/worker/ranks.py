"""The other ranks of a replica, as processes: started by the one that is the first."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from fluxline.worker.loop import EXIT_ORPHANED

PARENT = "RANK_PARENT"
"""Of the environment of a rank: the process that it may not outlive."""
WORDS_S = 0.5  # what is lost next is only its consequence, or its cause: both are logged
REAP_S = 1.0  # for a process that was killed to be gone
LOOK_S = 1.0  # between two looks at whether a parent is there
PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Ranks:
    """Starts the other ranks of a replica, and ends them with this process when one is lost.

    module, argv: what each runs. tell: told why of each that is lost, on a thread of its own, while
    others may be lost for the same reason. die: ends this process at once.
    """

    def __init__(
        self,
        module: str,
        argv: Sequence[str],
        *,
        tell: Callable[[str], None],
        die: Callable[[], None],
    ) -> None:
        self._command = [sys.executable, "-P", "-m", module, *argv]
        self._tell, self._die = tell, die
        self._processes: list[subprocess.Popen[bytes]] = []
        self._is_ending = False

    def start(self, rank: int, variables: Mapping[str, str]) -> None:
        """Start one with these variables. It ends when this thread does, whoever interrupts it."""
        process = subprocess.Popen(
            self._command,
            env={**os.environ, **variables, PARENT: str(os.getpid())},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._processes.append(process)
        threading.Thread(target=self._reap, args=(rank, process), daemon=True).start()

    def lost(self, why: str) -> None:
        """Tell why the replica ends, and what else is said just now; then end all ranks of it.

        Any thread, and several at once: who loses one rank soon loses others. What is ended here is
        not lost.
        """
        if self._is_ending:
            return
        self._tell(why)
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
        if code and not self._is_ending:
            how = f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"
            self.lost(f"rank {rank} {how}")


def end_with_parent() -> None:
    """Have this process, a rank, end when its parent dies, so that no orphan keeps a device busy.

    On Linux the kernel sees to it, also where the rank is stopped or stuck.
    """
    parent = int(os.environ.get(PARENT, os.getppid()))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it had died before
        os._exit(EXIT_ORPHANED)
    if sys.platform != "linux":
        threading.Thread(target=_look_for, args=(parent,), daemon=True).start()


def _look_for(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_S)
    os._exit(EXIT_ORPHANED)
