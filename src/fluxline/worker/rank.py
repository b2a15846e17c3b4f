"""`python -m fluxline.worker.rank`: a rank of a replica but the first. Told what a worker is told,
by the environment which rank it is, and by the first what to open. Started by a worker only."""

import os
import signal
import sys
from collections.abc import Sequence

from fluxline.errors import LoadError
from fluxline.telemetry import configure_logging
from fluxline.worker.__main__ import keep_to, parser, share_of
from fluxline.worker.loop import EXIT_CANNOT_LOAD, EXIT_OK, EXIT_ORPHANED
from fluxline.worker.place import beside, place_of
from fluxline.worker.ranks import end_with_parent


def main(argv: Sequence[str] | None = None) -> int:
    """Draw along until the first rank has nothing more to draw, or is lost, which ends all."""
    end_with_parent()
    options = parser().parse_args(argv)
    configure_logging(options.log_level, options.log_format)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
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


if __name__ == "__main__":
    sys.exit(main())
