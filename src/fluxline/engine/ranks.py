"""Open the first rank of a replica, or be another."""

import queue
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from fluxline.approximation import ApproximationName
from fluxline.degrees import Degrees
from fluxline.engine.build import TECHNICAL, open_model, open_scorer, pick_device
from fluxline.engine.intake import Intake
from fluxline.engine.loras import Library, LoraSources
from fluxline.engine.replay import Follower
from fluxline.engine.runner import Runner
from fluxline.errors import ConfigError, LoadError
from fluxline.models.base import Banded, DiffusionModel, Divisible, Walkable, none_awaited
from fluxline.parallel.crew import Crew
from fluxline.parallel.line import Follow, Lead
from fluxline.parallel.meeting import Meeting
from fluxline.request import MemoryName
from fluxline.wire import ToRank

ALIKE_S = 5.0  # what the first rank gets to find out for itself why a model cannot be loaded

StartRank = Callable[[int, Mapping[str, str]], None]
"""Starts a process that is another rank, by its number, with these variables."""


def gather(
    degrees: Degrees, device: str, start: StartRank, on_lost: Callable[[str], None]
) -> tuple[Crew, Lead]:
    """Start the other ranks on this machine, and wait until all have come.

    on_lost: told why, on a thread of its own, of each that is lost.
    """
    meeting = Meeting.here(degrees.ranks)
    for rank in range(1, meeting.size):
        start(rank, meeting.variables(rank))
    line = Lead(meeting.store, meeting.host, meeting.size)
    line.watch(on_lost)
    return meeting.crew(degrees, pick_device(device)), line


def divide(model: DiffusionModel[Any], crew: Crew) -> None:
    """Have what a model evaluates run on all ranks. Raises ConfigError where it cannot."""
    if isinstance(model, Banded):
        model.banded.shared = crew.band
    if crew.parts == 1:
        return
    if not isinstance(model, Divisible):
        message = f"{model.spec.name} cannot be cut by tokens: its network is diffusers' own"
        raise ConfigError(f"{message}; use cfg or data")
    model.forward = crew.divided(model.transformer)
    model.spec = replace(
        model.spec,
        ranks=crew.parts,
        approximations=_approximations(model, crew),
        key_bytes=model.key_bytes // crew.degrees.tensor,
    )


def _approximations(model: DiffusionModel[Any], crew: Crew) -> tuple[ApproximationName, ...]:
    """What ranks that hold a picture's tokens together may be asked for."""
    is_home = model.awaited_bytes is none_awaited  # a stage would call some of its visitors alone
    if isinstance(model, Walkable) and is_home and crew.degrees.cfg == 1:
        return ("piflux", "distrifusion", "pipefusion")
    return ("piflux", "distrifusion")


def follow(
    model: str,
    device: str,
    on_lost: Callable[[], None],
    *,
    degrees: Degrees,
    precision: str = "auto",
    memory: MemoryName = "auto",
    weights_gb: float | None = None,
    loras: LoraSources,
) -> None:
    """Be the rank that the environment says, until the first hangs up: on_lost must end it all.

    Raises what the model cannot be opened with, and what a forward failed with.
    """
    meeting = Meeting.by_environment()
    line = Follow(meeting.store, meeting.rank)
    inbox: queue.SimpleQueue[ToRank] = queue.SimpleQueue()
    line.watch(inbox.put, on_lost)
    try:
        crew = meeting.crew(degrees, pick_device(device))
        opened = open_model(model, device, precision, memory, weights_gb, crew)
        divide(opened, crew)
        intake = Intake(opened.spec, Library(opened, loras).mix, is_technical=False)
        runner = Runner(opened, lambda: open_scorer(TECHNICAL, opened.device), crew=crew)
        follower = Follower(opened, runner, intake, crew)
        while True:
            follower.obey(inbox.get())
    except Exception as exc:
        if isinstance(exc, LoadError):
            time.sleep(ALIKE_S)
        line.broke(f"{type(exc).__name__}: {exc}")
        raise
