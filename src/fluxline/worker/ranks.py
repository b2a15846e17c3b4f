"""The other ranks of a replica, as processes: started by the one that is the first."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence

EXIT_CANNOT_LOAD = 2
ALIKE_S = 5.0  # what the first rank gets to find out for itself why a model cannot be loaded


class Ranks:
    """Starts the other ranks of a replica, and looks after them.

    module, argv: what each runs. on_lost: told why, on a thread of its own, should one of them end
    before its time.
    """

    def __init__(self, module: str, argv: Sequence[str], on_lost: Callable[[str], None]) -> None:
        self._command = [sys.executable, "-P", "-m", module, *argv]
        self._on_lost = on_lost

    def start(self, rank: int, variables: Mapping[str, str]) -> None:
        """Start one with these variables. It ends when this process does, whoever interrupts it."""
        process = subprocess.Popen(
            self._command,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        threading.Thread(target=self._reap, args=(rank, process), daemon=True).start()

    def _reap(self, rank: int, process: subprocess.Popen[bytes]) -> None:
        if not (code := process.wait()):
            return
        if code == EXIT_CANNOT_LOAD:
            time.sleep(ALIKE_S)
        how = f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"
        self._on_lost(f"rank {rank} {how}")
