"""All profiles of a server: which one draws a request, and who stands in for one that is down.

A stand-in is never silent: every picture it draws says whose place it took.
"""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace

from fluxline.errors import FluxlineError, InvalidParams, UnknownModel
from fluxline.fleet.on_demand import OnDemand
from fluxline.fleet.replica import Publish, ReplicaState
from fluxline.request import EngineStats, Event, GenerationRequest, ImageReady, ModelInfo


class Router:
    """A `Replica` made of profiles, the first for who names none. Lives on one event loop."""

    def __init__(self, members: Sequence[OnDemand]) -> None:
        self._members = {member.name: member for member in members}
        self.default = members[0]

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

    def standing(self, profile: str | None) -> tuple[OnDemand, str]:
        """Who draws for a profile now, and why it is not the profile itself, if it is not."""
        if profile is None:
            return self.default, ""
        asked = self._members.get(profile)
        if asked is None:
            heir, _ = self.standing(self.default.name)
            return heir, f"profile {profile} is not served any more: drawn with {heir.name}"
        if asked.is_down and (other := self._stand_in(asked)):
            return other, f"profile {asked.name} is down: drawn with {other.name}"
        return asked, ""

    def takers(self) -> list[tuple[OnDemand, list[str]]]:
        """Who can be given work, each with the profiles whose work is theirs now."""
        names: dict[str, list[str]] = {}
        for name in self._members:
            names.setdefault(self.standing(name)[0].name, []).append(name)
        return [(self._members[name], whose) for name, whose in names.items()]

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
        """Draw a request with its profile, or with who stands in for it. Raises NotReady."""
        one, note = self.standing(request.profile)
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

    def _stand_in(self, asked: OnDemand) -> OnDemand | None:
        seen, name = {asked.name}, asked.profile.fallback
        while name in self._members and name not in seen:
            if not (other := self._members[name]).is_down:
                return other
            seen.add(name)
            name = other.profile.fallback
        return None

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
