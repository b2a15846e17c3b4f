"""Whether there is room for the ranks that are asked for: in a model, and on this machine's cores.

Said before any is started, and without torch where a device is named. What only a model's files or
its ranks can tell is not known here.
"""

import os

from fluxline.cli.auto import Look, look
from fluxline.degrees import Degrees
from fluxline.errors import ConfigError
from fluxline.parallel.network import NETWORKS
from fluxline.settings import Settings
from fluxline.worker.place import Place


def check_shares(model: str, degrees: Degrees) -> None:
    """See that each rank has something of a model's weights, if its name tells what there is.

    Raises ConfigError, in the words that its ranks would have for it.
    """
    if (network := NETWORKS.get(model)) is None:
        return
    for axis, count, share, there in (
        ("stages", degrees.stages, "a block", network.layers),
        ("tensor", degrees.tensor, "a head of attention", network.heads),
    ):
        if count > there:
            raise ConfigError(f"{axis}={count} needs {share} for each rank; {model} has {there}")


def cores() -> int:
    """Of the CPU, that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def crowd(ranks: int, cores: int) -> str:
    """What to say of so many ranks on a CPU; empty: each has a core of its own."""
    if ranks <= cores:
        return ""
    return f"{ranks} ranks on {cores} {'core' if cores == 1 else 'cores'}: slower than fewer"


def crowds(settings: Settings, place: Place | None, look: Look = look) -> list[str]:
    """What to say of each profile that has more ranks on this CPU than there are cores.

    place: this process's, among ranks that were started. Where cards cannot be looked at nothing is
    said of a profile that takes what is there. Raises ConfigError.
    """
    found = []
    for profile in settings.served():
        ranks = place.local_size if place else profile.members * profile.degrees.ranks
        if words := crowd(ranks, cores()):
            found.append((profile, words))
    on_cpu = {"cpu"}
    if any(profile.device == "auto" for profile, _ in found) and _has_no_card(look):
        on_cpu.add("auto")
    return [f"{profile.name}: {words}" for profile, words in found if profile.device in on_cpu]


def _has_no_card(look: Look) -> bool:
    """Whether that is known of this machine: a note is no reason not to start."""
    try:
        return not look(())
    except ConfigError:
        return False
