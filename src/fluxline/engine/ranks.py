"""Open the first rank of a replica, or be another."""

import queue
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from fluxline import wire
from fluxline.approximation import ApproximationName
from fluxline.degrees import degrees_of, shares
from fluxline.engine.build import TECHNICAL, open_model, open_scorer, pick_device
from fluxline.engine.intake import Intake
from fluxline.engine.loras import Library, LoraSources
from fluxline.engine.replay import Follower
from fluxline.engine.runner import Runner
from fluxline.errors import ConfigError, LoadError
from fluxline.models.base import Banded, DiffusionModel, Divisible, Walkable, none_awaited
from fluxline.models.spec import ModelSpec, References
from fluxline.parallel.crew import Crew
from fluxline.parallel.line import Follow, Lead
from fluxline.parallel.meeting import Meeting

ALIKE_S = 5.0  # what the first rank gets to find out for itself why a model cannot be loaded

StartRank = Callable[[int, Mapping[str, str]], None]
"""Starts a process that is another rank, by its number, with these variables."""
OnLost = Callable[[str], None]
"""Told why, on a thread of its own, when another rank is lost."""


def gather(opening: wire.Open, device: str, start: StartRank, on_lost: OnLost) -> tuple[Crew, Lead]:
    """Start the other ranks on this machine, wait until all have come, and tell them what to open.

    on_lost: told why, on a thread of its own, of each that is lost. Raises LoadError.
    """
    meeting = Meeting.here(degrees_of(opening.parallel).ranks)
    for rank in range(1, meeting.size):
        start(rank, meeting.variables(rank))
    return _led(meeting, opening, device, on_lost)


def lead(opening: wire.Open, device: str, on_lost: OnLost) -> tuple[Crew, Lead]:
    """Wait for the other ranks, started as this one was: the environment says where they meet.

    Raises LoadError.
    """
    return _led(Meeting.by_environment(), opening, device, on_lost)


def _led(meeting: Meeting, opening: wire.Open, device: str, on_lost: OnLost) -> tuple[Crew, Lead]:
    line = Lead(meeting.store, meeting.host, meeting.size)
    line.watch(on_lost)
    line.tell(opening)
    return meeting.crew(degrees_of(opening.parallel), pick_device(device), line.word), line


def divide(model: DiffusionModel[Any], crew: Crew) -> None:
    """Have what a model evaluates run on all ranks. Raises ConfigError where it cannot."""
    if isinstance(model, Banded):
        model.banded.shared = crew.band
    if crew.parts == 1:
        return
    if not isinstance(model, Divisible):
        message = f"{model.spec.name} cannot be cut by tokens: its network is diffusers' own"
        raise ConfigError(f"{message}; use cfg or data")
    if crew.degrees.stages > 1:
        assert isinstance(model, Walkable)  # what has shares of its weights can be walked
        model.forward = crew.staged(model.transformer, model.device)
    else:
        model.forward = crew.divided(model.transformer)
    model.spec = replace(
        model.spec,
        ranks=crew.parts,
        references=_looked_at(model.spec, crew),
        approximations=_approximations(model, crew),
        key_bytes=model.head_bytes * shares(model.heads, crew.degrees.tensor)[0],
        blocks=len(model.transformer.blocks) if isinstance(model, Walkable) else 0,
    )


def _approximations(model: DiffusionModel[Any], crew: Crew) -> tuple[ApproximationName, ...]:
    """What ranks that have a picture's tokens together, or its blocks, may be asked for."""
    looks = model.spec.references
    after_maps = looks is not None and looks.is_needed and not looks.text_tokens
    is_home = model.awaited_bytes is none_awaited  # a stage would call some of its visitors alone
    walks = isinstance(model, Walkable) and not (after_maps or model.spec.fills)
    in_stages = crew.agree(is_home, model.device) and walks and crew.degrees.cfg == 1
    by_tokens: tuple[ApproximationName, ...] = ("piflux", "distrifusion")
    if crew.degrees.stages > 1:
        by_tokens = ()
    return (*by_tokens, "pipefusion") if in_stages else by_tokens


def _looked_at(spec: ModelSpec, crew: Crew) -> References | None:
    """How pictures are looked at; what blocks make of them is remembered by no stage."""
    looks = spec.references
    return None if looks is not None and looks.in_memory and crew.degrees.stages > 1 else looks


def follow(
    device: str,
    on_lost: Callable[[], None],
    *,
    loras: LoraSources,
    on_joined: Callable[[], None] = lambda: None,
) -> None:
    """Be the rank that the environment says, until the first has nothing more to draw.

    on_lost: called if it hangs up before, and must end it all. on_joined: called once it is known
    that it will. Raises what the model cannot be opened with, and what a forward failed with.
    """
    meeting = Meeting.by_environment()
    line = Follow(meeting.store, meeting.rank)
    inbox: queue.SimpleQueue[wire.ToRank] = queue.SimpleQueue()
    line.watch(inbox.put, on_lost)
    on_joined()
    try:
        opening = inbox.get()
        assert isinstance(opening, wire.Open)
        crew = meeting.crew(degrees_of(opening.parallel), pick_device(device), line.word)
        follower = _follower(opening, device, crew, loras)
        while not isinstance(said := inbox.get(), wire.Over):
            follower.obey(said)
    except Exception as exc:
        if isinstance(exc, LoadError):
            time.sleep(ALIKE_S)
        line.broke(f"{type(exc).__name__}: {exc}")
        raise
    line.close()
    crew.part()


def _follower(opening: wire.Open, device: str, crew: Crew, loras: LoraSources) -> Follower:
    opened = open_model(
        opening.model, device, opening.precision, opening.memory, opening.weights_gb, crew
    )
    divide(opened, crew)
    intake = Intake(opened.spec, Library(opened, loras).mix, is_technical=False)
    runner = Runner(opened, lambda: open_scorer(TECHNICAL, opened.device), crew=crew, shows=False)
    return Follower(opened, runner, intake, crew)
