"""All profiles of a server: which one draws a request, and who stands in for one that is down.

A stand-in is never silent: every picture it draws says whose place it took. It is given only what
it can draw, and only once it is loaded: until then a request waits for whoever is there first.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from fluxline.ability import EngineStats, ModelInfo, check_all, may_stand_in
from fluxline.errors import FluxlineError, InvalidParams, RequestError, UnknownModel
from fluxline.fleet.on_demand import OnDemand
from fluxline.fleet.replica import Publish, ReplicaState
from fluxline.request import Event, GenerationRequest, ImageReady

STAND_IN_AFTER_S = 3.0
"""For which a profile is down before another is loaded in its place: a restart may be quicker."""


class Router:
    """A `Replica` made of profiles, the first for who names none. Lives on one event loop."""

    def __init__(self, members: Sequence[OnDemand]) -> None:
        self._members = {member.name: member for member in members}
        self.default = members[0]
        self._down_since: dict[str, float] = {}  # monotonic, as `takers` has seen it

    def __iter__(self) -> Iterator[OnDemand]:
        """The profiles."""
        return iter(self._members.values())

    def __len__(self) -> int:
        return len(self._members)

    # ---- who draws

    def choose(
        self,
        *,
        model: str | None = None,
        profile: str | None = None,
        preferred: Sequence[str] = (),
        priority: int = 0,
    ) -> OnDemand:
        """Find the profile of a request: the one it names; else, of those that have its model,
        the first that is preferred, or is there for its priority, or the server's first.

        model: a model's name, or a profile's. Raises UnknownModel, InvalidParams.
        """
        fits = [one for one in self if model in (None, one.name)]
        fits = fits or [one for one in self if _has(one, model or "")]
        if not fits:
            served = ", ".join(self._names())
            raise UnknownModel(f"model {model!r} is not served here; served: {served}")
        if profile is not None:
            return self._named(profile, model, fits)
        urgent = [one for one in fits if _is_for(one, priority)]
        urgent.sort(key=lambda one: -(one.profile.from_priority or 0))
        by_name = {one.name: one for one in fits}
        wanted = [by_name[name] for name in preferred if name in by_name]
        return next(iter([*wanted, *urgent, *fits]))

    def standing(self, request: GenerationRequest) -> tuple[OnDemand, str]:
        """Who draws a request now, and why it is not its profile, if it is not.

        With its profile down and nobody there who can draw it, it is still its profile's.
        """
        asked = self._whose(request)
        one = self._stand_in(asked, request) or asked
        if request.profile not in (None, *self._members):
            return one, f"profile {request.profile} is not served any more: drawn with {one.name}"
        return one, "" if one is asked else f"profile {asked.name} is down: drawn with {one.name}"

    def describing(self, profile: str | None) -> OnDemand:
        """Whose model says what may be asked of a profile: its own; while nobody knows that, or
        once it has failed for good, that of a stand-in."""
        own = self._members.get(profile or "", self.default)
        if not own.is_down or (own.models and own.state != "failed"):
            return own
        others = self.line_of(own.name)
        there = [one for one in others if one.state == "ready"]
        return next(iter([*there, *(others if own.state == "failed" else ())]), own)

    def why_never(self, request: GenerationRequest) -> str | None:
        """Why nobody will draw a request any more; None: somebody will, or may."""
        asked = self._whose(request)
        if asked.state != "failed" or self._may_come(asked, request):
            return None
        return asked.reason

    def heir(self, model: str | None) -> OnDemand:
        """Who draws for a profile that is not served any more: one with its request's model."""
        return next((one for one in self if model and _has(one, model)), self.default)

    def takers(self) -> list[tuple[OnDemand, list[str]]]:
        """Who can be given work, each with the profiles whose work may be theirs now."""
        now, since = time.monotonic(), self._down_since
        self._down_since = {one.name: since.get(one.name, now) for one in self if one.is_down}
        names: dict[str, list[str]] = {}
        for one in self:
            others = self.line_of(one.name) if one.is_down else ()
            for taker in [other for other in others if other.state == "ready"] or [one]:
                names.setdefault(taker.name, []).append(one.name)
        return [(self._members[name], whose) for name, whose in names.items()]

    @property
    def down(self) -> list[str]:
        """The profiles that are down."""
        return [one.name for one in self if one.is_down]

    def line_of(self, profile: str) -> list[OnDemand]:
        """Those that stand in for a profile and are not down, the first that is asked first."""
        seen, name = [profile], self._members[profile].profile.fallback
        while name in self._members and name not in seen:
            seen.append(name)
            name = self._members[name].profile.fallback
        return [one for name in seen[1:] if not (one := self._members[name]).is_down]

    def call_in(self, request: GenerationRequest) -> None:
        """Have a stand-in loaded for a request whose profile has been down for some time, or for
        good, if nobody who is there can draw it."""
        asked = self._whose(request)
        if not asked.is_down or self._stand_in(asked, request):
            return
        now = time.monotonic()
        down_s = now - self._down_since.get(asked.name, now)
        if asked.state == "failed" or down_s >= STAND_IN_AFTER_S:
            for one in self._may_come(asked, request)[:1]:
                one.load()

    # ---- all of them as one

    @property
    def state(self) -> ReplicaState:
        """Ready as soon as somebody can draw, or would be loaded to; failed only when all are."""
        states = [self._standing_state(one) for one in self]
        order: tuple[ReplicaState, ...] = ("ready", "starting", "restarting", "stopped", "failed")
        return next(state for state in order if state in states)

    @property
    def reason(self) -> str:
        """Why it is not ready; empty when it is."""
        state = self.state
        if state == "ready":
            return ""
        return next(one.reason for one in self if self._standing_state(one) == state)

    @property
    def models(self) -> tuple[ModelInfo, ...]:
        """What was served since the start; each once."""
        return tuple({info.name: info for one in self for info in one.models}.values())

    @property
    def ready(self) -> int:
        """How many engines are there to be given work."""
        return sum(one.loaded for one in self)

    @property
    def restarts(self) -> int:
        """How often workers had to be started again."""
        return sum(one.restarts for one in self)

    @property
    def stats(self) -> tuple[EngineStats, ...]:
        """What all engines that are there have done."""
        return tuple(stats for one in self for stats in one.stats)

    def start(self) -> None:
        """Begin to load what is eager. Returns at once."""
        for one in self:
            one.start()

    async def ended(self) -> None:
        """Wait until every profile has failed for good or was stopped."""
        while self.state not in ("failed", "stopped"):
            for one in self:
                await one.ended()
            await asyncio.sleep(0)  # one that had failed may be loaded again

    def submit(self, request: GenerationRequest, publish: Publish) -> None:
        """Draw a request with its profile, or with who stands in for it. Raises NotReady, and
        InvalidParams for one of a profile that is gone and that its heir cannot draw.
        """
        one, note = self.standing(request)
        if request.profile not in (None, *self._members) and one.models:
            _vet_for_heir(request, one)
        if request.model is not None and not _has(one, request.model):
            request = replace(request, model=None)  # the door named whom it stood for then
        one.submit(request, _noting(note, publish) if note else publish)

    def cancel(self, request_id: str) -> None:
        """Stop drawing a request. An unknown id is ignored."""
        for one in self:
            one.cancel(request_id)

    async def stop(self) -> None:
        """End all. What is still open is published as failed."""
        await asyncio.gather(*(one.stop() for one in self))

    # ---- inside

    def _named(self, profile: str, model: str | None, fits: Sequence[OnDemand]) -> OnDemand:
        asked = self._members.get(profile)
        if asked is None:
            message = f"profile {profile!r} is not served here; served: {', '.join(self._members)}"
            raise InvalidParams(message, field="profile")
        if asked not in fits:
            message = f"profile {profile} serves {asked.profile.model_name}, not {model}"
            raise InvalidParams(message, field="profile")
        return asked

    def _whose(self, request: GenerationRequest) -> OnDemand:
        """The profile of a request; of one that is gone, its heir."""
        if request.profile is None:
            return self.default
        return self._members.get(request.profile) or self.heir(request.model)

    def _stand_in(self, asked: OnDemand, request: GenerationRequest) -> OnDemand | None:
        """Who draws a request in place of a profile that is down, if anybody can now."""
        coming = self._may_come(asked, request) if asked.is_down else []
        return next((one for one in coming if one.state == "ready"), None)

    def _may_come(self, asked: OnDemand, request: GenerationRequest) -> list[OnDemand]:
        """Those in line for a profile that can draw a request, as far as anybody knows."""
        own = next(iter(asked.models), None)
        return [
            one
            for one in self.line_of(asked.name)
            if not one.models or may_stand_in(request, one.models[0], own)
        ]

    def _names(self) -> list[str]:
        """What a request may call a model by, each once."""
        return list(dict.fromkeys(name for one in self for name in _names_of(one)))

    @staticmethod
    def _standing_state(one: OnDemand) -> ReplicaState:
        """A profile that is loaded on demand is as good as there while it is not broken."""
        is_coming = one.profile.is_lazy and one.state in ("unloaded", "starting")
        return "ready" if is_coming else one.state


def _names_of(one: OnDemand) -> list[str]:
    return [one.name, one.profile.model_name, *(info.name for info in one.models)]


def _has(one: OnDemand, model: str) -> bool:
    return model == one.profile.model or model in _names_of(one)


def _vet_for_heir(request: GenerationRequest, one: OnDemand) -> None:
    try:
        check_all(request, one.models[0])
    except RequestError as exc:
        text = f"profile {request.profile} is not served any more, and {one.name} cannot draw this"
        raise InvalidParams(f"{text}: {exc.message}", field="profile") from exc


def _is_for(one: OnDemand, priority: int) -> bool:
    return one.profile.from_priority is not None and priority >= one.profile.from_priority


def _noting(note: str, publish: Publish) -> Publish:
    """Have every picture say something."""

    def take(news: Event | FluxlineError) -> None:
        if isinstance(news, ImageReady):
            image = replace(news.image, warnings=(note, *news.image.warnings))
            news = ImageReady(news.request_id, image)
        publish(news)

    return take
