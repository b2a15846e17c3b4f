"""`python -m fluxline.worker.rank`: a rank of a replica but the first. Told what a worker is told,
and by the environment which rank it is. Started by a worker only."""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

from fluxline.errors import LoadError
from fluxline.telemetry import configure_logging
from fluxline.worker.__main__ import EXIT_ORPHANED, keep_to, parser, share_of
from fluxline.worker.loop import EXIT_BROKEN, EXIT_CANNOT_LOAD
from fluxline.worker.ranks import PARENT

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(argv: Sequence[str] | None = None) -> int:
    """Draw along until the first rank hangs up, which ends this process at once."""
    end_with(int(os.environ[PARENT]))
    options = parser().parse_args(argv)
    configure_logging(options.log_level, options.log_format)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    keep_to(*share_of(options.share, int(os.environ["RANK"]), options.parallel.ranks))
    from fluxline.engine import LoraSources, follow

    try:
        follow(
            options.model,
            beside(options.device, int(os.environ["RANK"])),
            lambda: os._exit(EXIT_ORPHANED),
            degrees=options.parallel,
            precision=options.precision,
            memory=options.memory,
            weights_gb=options.weights_gb,
            loras=LoraSources(
                folder=options.loras,
                paths=False,
                fetch=options.fetch_loras,
                cache_bytes=options.lora_bytes,
            ),
        )
    except LoadError:
        return EXIT_CANNOT_LOAD  # the first rank says why
    return EXIT_BROKEN


def end_with(parent: int) -> None:
    """Have the kernel kill this process when its parent dies, even one that is stopped or stuck.

    On Linux alone; elsewhere the line to the first rank does it, once there is one.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it had died before
            os._exit(EXIT_ORPHANED)


def beside(device: str, rank: int) -> str:
    """The device of a rank, where that of the first is given: cards in a row."""
    kind, _, first = device.partition(":")
    return device if kind in ("cpu", "mps") else f"{kind}:{int(first or 0) + rank}"


if __name__ == "__main__":
    sys.exit(main())
