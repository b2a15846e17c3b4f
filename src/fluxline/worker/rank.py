"""`python -m fluxline.worker.rank`: a rank of a replica but the first. Told what a worker is told,
by the environment which rank it is, and by the first what to open. Started by a worker only."""

import os
import signal
import sys
import threading
import time
from collections.abc import Sequence

from fluxline.errors import LoadError
from fluxline.telemetry import configure_logging
from fluxline.worker.__main__ import EXIT_ORPHANED, keep_to, parser, share_of
from fluxline.worker.loop import EXIT_CANNOT_LOAD, EXIT_OK
from fluxline.worker.place import beside, place_of

LOOK_S = 1.0  # between two looks at whether its parent is there


def main(argv: Sequence[str] | None = None) -> int:
    """Draw along until the first rank has nothing more to draw, or is lost, which ends all."""
    options = parser().parse_args(argv)
    configure_logging(options.log_level, options.log_format)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    place = place_of(os.environ)
    assert place is not None
    keep_to(*share_of(options.share, place))
    from fluxline.engine import LoraSources, follow

    try:
        follow(
            beside(options.device, place.local_rank),
            lambda: os._exit(EXIT_ORPHANED),
            loras=LoraSources(
                folder=options.loras,
                paths=False,
                fetch=options.fetch_loras,
                cache_bytes=options.lora_bytes,
            ),
        )
    except LoadError:
        return EXIT_CANNOT_LOAD  # the first rank says why
    return EXIT_OK


def _end_with_parent(parent: int) -> None:
    """Make sure that no orphan keeps a device busy, while the first rank is on another node."""
    while os.getppid() == parent:
        time.sleep(LOOK_S)
    os._exit(EXIT_ORPHANED)


if __name__ == "__main__":
    sys.exit(main())
