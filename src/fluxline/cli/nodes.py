"""A server whose ranks torchrun has started: the first serves, all others draw along.

They may be on several nodes, but all are one replica, and one process takes requests.
"""

import signal
import subprocess
import sys
import threading
import time

from fluxline.cli.auto import Look, look, of_ranks
from fluxline.degrees import Degrees
from fluxline.errors import ConfigError
from fluxline.profiles import Profile
from fluxline.settings import Settings
from fluxline.worker.loop import EXIT_CANNOT_LOAD, EXIT_OK
from fluxline.worker.place import Place

AGAIN_S = 1.0  # before a rank that was lost joins those that are started anew
LOOK_S = 0.2  # between two looks at whether this process is to end
GRACE_S = 5.0  # beyond what the first gives running requests, for a rank to hear that it has done


def on_ranks(settings: Settings, place: Place, look: Look = look) -> tuple[Settings, list[str]]:
    """The settings of a server that draws on the ranks that were started, and what was chosen.

    Raises ConfigError where they cannot be its.
    """
    profile, *others = settings.served()
    several = profile.replicas or (1 if profile.is_auto else profile.degrees.data)
    if others or profile.is_lazy or several > 1:
        message = "ranks that were started are one replica of one profile, which is loaded at once"
        raise ConfigError(f"{message}: name it with --profile, and say neither replicas nor data")
    degrees, words = _degrees_on(place, profile, look)
    divided = settings.dividing({profile.name: degrees.spelt})
    (profile,) = divided.served()
    if profile.members > 1:
        message = f"devices names {len(profile.devices)} cards; of {place.size} ranks that were"
        raise ConfigError(f"{message} started each takes one: name as many, or leave them out")
    return divided, words


def _degrees_on(place: Place, profile: Profile, look: Look) -> tuple[Degrees, list[str]]:
    """What all of these ranks divide: as was said or is best, or else the tokens."""
    if profile.is_auto:
        choice = of_ranks(profile, place, look)
        return choice.degrees, [f"{profile.name}: {choice}"]
    degrees = profile.degrees if profile.parallel else Degrees(ulysses=place.size)
    if degrees.ranks != place.size:
        asked = f"parallel {profile.parallel!r} is for {degrees.ranks} ranks"
        raise ConfigError(f"{asked}; {place.size} were started: start as many, or leave it out")
    return degrees, []


def follow_server(settings: Settings) -> int:
    """Be another rank of its replica, for as long as it serves; return an exit code.

    A rank that ends because one was lost is started again: so is the first, by the server. Told to
    end, it goes on for as long as the server may, which is told to end too, draws for others.
    """
    from fluxline.server.house import command_of

    (profile,) = settings.served()
    options = command_of(profile, settings).options(fd=0)
    leaving = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: leaving.set())
    while True:
        rank = subprocess.Popen(
            [sys.executable, "-P", "-m", "fluxline.worker.rank", *options], start_new_session=True
        )
        code = _ended(rank, leaving, settings.drain_s + GRACE_S)
        if leaving.is_set() or code in (EXIT_OK, EXIT_CANNOT_LOAD):
            return code
        time.sleep(AGAIN_S)


def _ended(rank: subprocess.Popen[bytes], leaving: threading.Event, grace_s: float) -> int:
    """The exit code of a rank, which is killed if it is there so long after it was to leave."""
    left_s = grace_s
    while True:
        try:
            return rank.wait(LOOK_S)
        except subprocess.TimeoutExpired:
            left_s -= LOOK_S if leaving.is_set() else 0.0
        if left_s <= 0:
            rank.kill()
