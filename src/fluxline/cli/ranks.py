"""The ranks that draw for `fluxline generate`: started by torchrun, or by the first of them.

The first decides, writes and speaks; the others are told what to open, and say nothing.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from msgspec import structs

from fluxline import wire
from fluxline.approximation import Approximation, ApproximationName, approximation_of
from fluxline.cli.auto import of_request
from fluxline.cli.delivery import say
from fluxline.cli.room import check_shares, cores, crowd
from fluxline.degrees import AUTO, Degrees, degrees_of
from fluxline.errors import ConfigError, InvalidParams
from fluxline.request import SamplingParams
from fluxline.settings import load_settings
from fluxline.worker.__main__ import keep_to
from fluxline.worker.loop import EXIT_ORPHANED
from fluxline.worker.place import Place, beside
from fluxline.worker.ranks import Ranks, end_with_parent

if TYPE_CHECKING:  # a server starts without these
    from rich.console import Console

    from fluxline.engine.replay import Tell
    from fluxline.parallel.crew import Crew

EXIT_LOST = 1
FIRST_S = 5.0  # in which the first rank says what is wrong, if it is so with all
TOLD_S = 2.0  # in which the line says who is lost, where a forward has failed for it


def ways_asked(said: Sequence[str], place: Place | None) -> tuple[str, Approximation | None]:
    """What `--parallel` means, given once or for ranks and for an approximation: the ranks' degrees
    as `degrees_asked` has them, and what they approximate.

    Raises InvalidParams, ConfigError.
    """
    names = get_args(ApproximationName)
    near = [word for word in said if word.partition(",")[0].strip() in names]
    ranks = [word for word in said if word not in near]
    if len(near) > 1 or len(ranks) > 1:
        message = f"parallel is given once for ranks and once for an approximation; got {said}"
        raise InvalidParams(message, field="parallel")
    if not near:
        return degrees_asked("".join(ranks), place), None
    asked = approximation_of(near[0])
    if ranks:
        return degrees_asked(ranks[0], place), asked
    if place is None:
        message = f"{asked.mode} takes several ranks: say how many beside, --parallel ulysses=2"
        raise ConfigError(f"{message}, or start them with torchrun")
    if asked.mode == "pipefusion":
        return Degrees(stages=place.size).spelt, asked
    return degrees_asked("", place), asked


def degrees_asked(said: str, place: Place | None) -> str:
    """What `--parallel` means for one picture at a time, as `degrees_of` reads it or AUTO; with
    ranks there and nothing said, all of them divide its tokens.

    Raises InvalidParams, ConfigError.
    """
    if said.strip() == AUTO:
        return AUTO
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


def ranks_of_recipe(spelt: str, name: str, device: str, console: "Console") -> str:
    """The ranks that the recipe of that file names, said, for nobody here has asked for them.

    Raises InvalidParams where they make no sense or are more than cards or cores, ConfigError
    without the device.
    """
    ranks = degrees_of(degrees_asked(spelt, None)).ranks
    if ranks == 1:
        return ""
    room, what = _room(device)
    if ranks > room:
        message = (
            f"{name} was drawn by {ranks} ranks ({spelt}); here is room for {room}, one a {what}"
        )
        raise InvalidParams(f"{message}: say with --parallel who draws it", field="parallel")
    say(console, f"note: as {name} was, it is drawn by {ranks} ranks: {spelt}", style="yellow")
    return spelt


def _room(device: str) -> tuple[int, str]:
    """How many ranks have a card of their own, from that one on, or else a core."""
    import torch

    from fluxline.engine.build import pick_device

    where = pick_device(device)
    if where.type == "cuda":
        return torch.cuda.device_count() - (where.index or 0), "card"
    return cores(), "core"


def let_first_speak() -> None:
    """Wait before another rank ends: once one has, torchrun ends all, and nothing would be said."""
    time.sleep(FIRST_S)


def follow_first(device: str, place: Place) -> None:
    """Be another rank until the first has nothing more to draw; end the process if it is lost.

    Raises LoadError before it has joined the others; later the first says what is wrong.
    """
    end_with_parent()
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
    are best for what is drawn. Raises LoadError, also where the model has nothing for some.

    One that is lost ends this process, with the reason.
    """
    if opening.parallel == AUTO:
        choice = of_request(opening, params, device, place)
        say(console, str(choice), style="default")
        opening = structs.replace(opening, parallel=choice.degrees.spelt)
    degrees = degrees_of(opening.parallel)
    if degrees.ranks == 1:
        yield Together(device=device)
        return
    check_shares(opening.model, degrees)
    here = place or Place.first_of(degrees.ranks)
    words = crowd(here.local_size, cores())
    keep_to(here.local_rank, here.local_size)
    from fluxline.engine import gather, lead
    from fluxline.engine.build import pick_device

    if words and pick_device(device).type == "cpu":
        say(console, f"note: {words}", style="yellow")
    _check_lora_folder()
    own, loss = beside(device, here.local_rank), Loss(console)
    if place is None:
        argv = ["generate", f"--device={device}"]
        others = Ranks("fluxline", argv, tell=loss.tell, die=_die)
        crew, line = gather(opening, own, others.start, others.lost)
    else:
        crew, line = lead(opening, own, loss.end)
    yield Together(device=own, crew=crew, tell=line.tell, on_lost=loss.end_soon)
    line.close()
    crew.part()


def _check_lora_folder() -> None:
    """The others read it as they start, and would end without a word. Raises ConfigError."""
    load_settings().lora_folder()


class Loss:
    """What another rank's end means for this process: its own. Its methods are for any thread."""

    def __init__(self, console: "Console") -> None:
        self._console = console
        self._once = threading.Lock()

    def tell(self, why: str) -> None:
        """Say why, once: what is lost after that is lost for it."""
        if self._once.acquire(blocking=False):
            self._console.show_cursor(True)
            say(self._console, f"fluxline: {why}; all ranks end", style="red")

    def end(self, why: str) -> None:
        """Say why, and end: this rank may wait in a forward for what will not come."""
        self.tell(why)
        _die()

    def end_soon(self) -> None:
        """End because a forward has failed, unless it is known by then who is lost."""
        time.sleep(TOLD_S)
        self.end("a forward has failed")


def _die() -> None:
    os._exit(EXIT_LOST)


def _leave_interrupts() -> None:
    """Leave it to the first rank to end what a Ctrl-C ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
