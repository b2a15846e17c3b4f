"""`--parallel auto`: degrees for the machine at hand, chosen before anything is started."""

import subprocess
import sys
from collections.abc import Callable, Sequence

from fluxline import wire
from fluxline.degrees import Degrees
from fluxline.errors import ConfigError
from fluxline.parallel.choice import Choice, Wish, for_picture, for_server
from fluxline.parallel.here import machine_here
from fluxline.profiles import Profile
from fluxline.request import SamplingParams
from fluxline.settings import Settings
from fluxline.worker.place import Place

LOOK_S = 120.0  # for torch to be imported and asked
WITHOUT_CARDS = ("cpu", "mps")
Look = Callable[[Sequence[int]], str]
"""Says what machine some cards are; none: all."""


def look(cards: Sequence[int]) -> str:
    """What torch says, in a process of its own: this one stays without. Raises ConfigError."""
    command = [sys.executable, "-P", "-m", "fluxline.parallel.here", *map(str, cards)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LOOK_S, check=True)
    except (OSError, subprocess.SubprocessError) as exc:
        raise ConfigError(f"parallel: the cards cannot be looked at: {exc}") from exc
    return done.stdout.strip()


def settled(settings: Settings, look: Look = look) -> tuple[Settings, list[str]]:
    """The settings with `auto` replaced by degrees, and what was chosen in words.

    Raises ConfigError, also where a profile does not go with what was chosen.
    """
    said, words = {}, []
    for profile in settings.served():
        if profile.is_auto:
            choice = _of_profile(profile, look)
            said[profile.name] = choice.degrees.spelt
            words.append(f"{profile.name}: {choice}")
    return (settings.dividing(said) if said else settings), words


def of_request(
    opening: wire.Open, params: SamplingParams, device: str, place: Place | None
) -> Choice:
    """Degrees for what `fluxline generate` draws; with ranks there, of all of them.

    Raises ConfigError.
    """
    wish = Wish(
        model=opening.model,
        precision=opening.precision,
        memory=opening.memory,
        width=params.width,
        height=params.height,
        steps=params.steps,
        is_steered=(params.cfg_scale or 1.0) > 1.0,
    )
    machine = _from(device)
    if place is None:
        return for_picture(wish, machine)
    return for_picture(wish, _on_nodes(machine, place), ranks=place.size)


def of_ranks(profile: Profile, place: Place, look: Look = look) -> Choice:
    """Degrees of a profile that is drawn on ranks which were started. Raises ConfigError."""
    machine = _looked(profile, look)
    return for_picture(_wish(profile), _on_nodes(machine, place), ranks=place.size)


def _of_profile(profile: Profile, look: Look) -> Choice:
    if profile.has_gaps:
        why = "ranks take cards in a row, and devices are not"
        return Choice(degrees=Degrees(data=profile.replicas or len(profile.devices)), why=why)
    return for_server(_wish(profile), _looked(profile, look), profile.replicas)


def _wish(profile: Profile) -> Wish:
    memory = "stream" if profile.weights_gb is not None else profile.memory
    return Wish(model=profile.model, precision=profile.precision, memory=memory)


def _looked(profile: Profile, look: Look) -> str:
    return "" if profile.device in WITHOUT_CARDS else look(profile.devices)


def _from(device: str) -> str:
    """The machine of a device's card and those after it, asked in this process."""
    kind, _, first = device.partition(":")
    if kind in WITHOUT_CARDS:
        return ""
    import torch

    return machine_here(torch.cuda, range(int(first or 0), torch.cuda.device_count()))


def _on_nodes(machine: str, place: Place) -> str:
    """So many of its cards as there are ranks, on as many nodes as these are."""
    if not machine:
        return ""
    kind, at, speed = machine.partition("x")[2].partition("@")
    nodes = -(-place.size // place.local_size)
    return f"{place.size}x{kind}+{nodes}nodes{at}{speed}"
