"""The ranks that draw for `fluxline generate`: started by torchrun, or by the first of them.

The first decides, writes and speaks; the others are told what to open, and say nothing.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, get_args

from msgspec import structs

from fluxline import wire
from fluxline.approximation import Approximation, ApproximationName, approximation_of
from fluxline.cli.auto import of_request
from fluxline.cli.delivery import say
from fluxline.degrees import AUTO, Degrees, degrees_of
from fluxline.errors import ConfigError, InvalidParams
from fluxline.request import SamplingParams
from fluxline.settings import load_settings
from fluxline.worker.__main__ import EXIT_ORPHANED, keep_to
from fluxline.worker.place import Place, beside
from fluxline.worker.ranks import ALIKE_S, Ranks

if TYPE_CHECKING:  # a server starts without these
    from rich.console import Console

    from fluxline.engine.replay import Tell
    from fluxline.parallel.crew import Crew

EXIT_LOST = 1
TOLD_S = 2.0  # in which the line says who is lost, where a forward has failed for it


def approximation_asked(said: str) -> Approximation | None:
    """What `--parallel` means for the picture, where it names no ranks: then those divide its
    tokens that are there. Raises InvalidParams."""
    mode, _, _ = said.partition(",")
    return approximation_of(said) if mode.strip() in get_args(ApproximationName) else None


def degrees_asked(said: str, place: Place | None) -> str:
    """What `--parallel` means for one picture at a time, as `degrees_of` reads it or AUTO; with
    ranks there and nothing said, all of them divide its tokens.

    Raises InvalidParams, ConfigError.
    """
    if said.strip() == AUTO:
        return AUTO
    said = "" if approximation_asked(said) else said
    degrees = degrees_of(said)
    if degrees.data > 1:
        message = "parallel: data is of replicas, which a server has; name axes of one picture"
        raise InvalidParams(message, field="parallel")
    if place is None:
        return degrees.spelt
    if not said.strip():
        return Degrees(ulysses=place.size).spelt
    if degrees.ranks != place.size:
        asked = f"parallel {said!r} is for {degrees.ranks} ranks"
        raise ConfigError(f"{asked}; {place.size} were started: start as many, or leave it out")
    return degrees.spelt


def follow_first(device: str, place: Place) -> None:
    """Be another rank until the first has nothing more to draw; end the process if it is lost.

    Raises LoadError before it has joined the others; later the first says what is wrong.
    """
    keep_to(place.local_rank, place.local_size)
    from fluxline.engine import LoraSources, follow

    follow(
        beside(device, place.local_rank),
        lambda: os._exit(EXIT_ORPHANED),
        loras=LoraSources(folder=load_settings().lora_folder()),
        on_joined=_leave_interrupts,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Together:
    """What an engine needs of the ranks that draw with it; nothing, where it draws alone."""

    device: str
    crew: "Crew | None" = None
    tell: "Tell | None" = None
    on_lost: Callable[[], None] | None = None
    is_open: threading.Event = field(default_factory=threading.Event)  # set by who opens it


@contextmanager
def gathered(
    opening: wire.Open,
    params: SamplingParams,
    *,
    device: str,
    place: Place | None,
    console: "Console",
) -> Iterator[Together]:
    """The other ranks of the first, here already or started now: as many as were asked for, or as
    are best for what is drawn. Raises LoadError.

    One that is lost ends this process, with the reason.
    """
    if opening.parallel == AUTO:
        choice = of_request(opening, params, device, place)
        say(console, str(choice), style="default")
        opening = structs.replace(opening, parallel=choice.degrees.spelt)
    ranks = degrees_of(opening.parallel).ranks
    if ranks == 1:
        yield Together(device=device)
        return
    load_settings().lora_folder()  # which the others read
    here = place or Place.first_of(ranks)
    keep_to(here.local_rank, here.local_size)
    from fluxline.engine import gather, lead

    own, is_open = beside(device, here.local_rank), threading.Event()
    loss = Loss(console, is_open)
    if place is None:
        others = Ranks("fluxline", ["generate", f"--device={device}"], loss.end)
        crew, line = gather(opening, own, others.start, loss.end)
    else:
        crew, line = lead(opening, own, loss.end)
    yield Together(device=own, crew=crew, tell=line.tell, on_lost=loss.end_soon, is_open=is_open)
    line.close()
    crew.part()


class Loss:
    """What another rank's end means for this process: its own. Its methods are for any thread."""

    def __init__(self, console: "Console", is_open: threading.Event) -> None:
        self._console, self._is_open = console, is_open
        self._once = threading.Lock()

    def end(self, why: str) -> None:
        """Say why, and end: this rank may wait in a forward for what will not come.

        Where a model is being opened, not at once: what keeps another from it keeps this one, too.
        """
        if not self._once.acquire(blocking=False):
            return
        if not self._is_open.is_set():
            time.sleep(ALIKE_S)
        self._console.show_cursor(True)
        say(self._console, f"fluxline: {why}; all ranks end", style="red")
        os._exit(EXIT_LOST)

    def end_soon(self) -> None:
        """End because a forward has failed, unless it is known by then who is lost."""
        time.sleep(TOLD_S)
        self.end("a forward has failed")


def _leave_interrupts() -> None:
    """Leave it to the first rank to end what a Ctrl-C ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
