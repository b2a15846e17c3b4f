"""`python -m fluxline.worker`: one engine behind an inherited socket. Started by a fleet only."""

import argparse
import importlib
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from pathlib import Path

from fluxline.degrees import Degrees, degrees_of
from fluxline.telemetry import configure_logging
from fluxline.worker.loop import EXIT_BROKEN, EXIT_ORPHANED, Engine, converse
from fluxline.worker.place import Place, beside, place_of
from fluxline.worker.ranks import Ranks

ORPHAN_GRACE_S = 5.0  # what the engine gets to close itself once the parent is gone


def main(argv: list[str] | None = None) -> int:
    """Serve the engine over the socket; return the exit code (2: the model cannot be loaded)."""
    options = parser().parse_args(argv)
    configure_logging(options.log_level, options.log_format)
    # A terminal's Ctrl-C and a service manager's TERM reach the whole group. The fleet decides
    # when this process ends: by a Stop message, by closing the socket, or by kill.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    place = place_of(os.environ) or Place.first_of(options.parallel.ranks)
    keep_to(*share_of(options.share, place))
    with socket.socket(fileno=options.fd) as sock:
        threading.Thread(target=_end_with_parent, args=(options.fd,), daemon=True).start()
        return converse(sock, lambda: _open(options))


def parser() -> argparse.ArgumentParser:
    """What a worker is told, and a rank beside it."""
    made = argparse.ArgumentParser(prog="fluxline.worker", description=__doc__)
    made.add_argument("--fd", type=int, required=True, help="the socket shared with the fleet")
    made.add_argument("--model", required=True)
    made.add_argument("--device", required=True)
    made.add_argument("--precision", default="auto", help="how its weights are held")
    made.add_argument("--memory", default="auto", help="where its weights lie")
    made.add_argument("--weights-gb", type=float, help="of weights that visit a card at once")
    made.add_argument("--share", default="0/1", help="of the cores: which/of how many workers")
    made.add_argument("--parallel", type=degrees_of, default=Degrees(), help="ranks that draw")
    made.add_argument("--engine", default="fluxline.engine:open_engine", help="module:factory")
    made.add_argument("--loras", type=Path, help="folder of LoRA files")
    made.add_argument("--lora-bytes", type=int, default=0, help="of LoRAs that are kept")
    made.add_argument("--fetch-loras", action="store_true", help="from the hub, by their ids")
    made.add_argument("--log-level", default="info")
    made.add_argument("--log-format", default="text")
    return made


def _open(options: argparse.Namespace) -> Engine:
    module, _, factory = options.engine.partition(":")
    began = time.monotonic()
    opener = getattr(importlib.import_module(module), factory)
    device, on_lost, more = options.device, _die, {}
    if options.parallel.ranks > 1:
        more = {"parallel": options.parallel, "on_rank_lost": _lost}
        if place := place_of(os.environ):
            device = beside(device, place.local_rank)
        else:
            ranks = Ranks("fluxline.worker.rank", sys.argv[1:], tell=_say_lost, die=_die)
            on_lost = ranks.stumbled
            more |= {"start_rank": ranks.start, "on_rank_lost": ranks.lost}
    engine: Engine = opener(
        options.model,
        device,
        on_lost,
        **more,
        precision=options.precision,
        memory=options.memory,
        weights_gb=options.weights_gb,
        loras=options.loras,
        lora_bytes=options.lora_bytes,
        fetches_loras=options.fetch_loras,
    )
    took_s = time.monotonic() - began
    logging.getLogger("fluxline.worker").info("engine open after %.1f s", took_s)
    return engine


def _lost(why: str) -> None:
    """End at once, where who started the other ranks ends them."""
    _say_lost(why)
    _die()


def _say_lost(why: str) -> None:
    logging.getLogger("fluxline.worker").error("%s: the replica ends", why)


def share_of(share: str, place: Place) -> tuple[int, int]:
    """Of a worker's share of the cores, that of a rank."""
    member, members = map(int, share.split("/"))
    return member * place.local_size + place.local_rank, members * place.local_size


def keep_to(member: int, members: int) -> None:
    """Run on this worker's share of the cores, so that workers do not fight over them."""
    if members == 1 or not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    first, last = len(cores) * member // members, len(cores) * (member + 1) // members
    os.sched_setaffinity(0, cores[first : max(last, first + 1)])


def _die() -> None:
    """End at once, telling nobody: the fleet sees a death and sends what was open to the next."""
    os._exit(EXIT_BROKEN)


def _end_with_parent(fd: int) -> None:
    """Make sure that no orphan keeps a device busy, even one stuck in loading or in a kernel."""
    watch = select.poll()
    watch.register(fd, 0)  # 0: only hang-up and errors wake it
    watch.poll()
    time.sleep(ORPHAN_GRACE_S)
    os._exit(EXIT_ORPHANED)


if __name__ == "__main__":
    sys.exit(main())
