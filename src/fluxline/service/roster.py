"""Which profiles there are, which one a request goes to, and waiting until it can draw."""

import asyncio
from collections.abc import Mapping

from fluxline.ability import ModelInfo
from fluxline.errors import NotReady
from fluxline.fleet.on_demand import OnDemand
from fluxline.fleet.router import Router
from fluxline.profiles import Preset
from fluxline.request import GenerationRequest, LoraRef
from fluxline.service.admission import Admission
from fluxline.service.terms import Standing, Wish
from fluxline.settings import DEFAULT_MODEL
from fluxline.tracing import open_span

LONGEST_OPENING_S = 120.0  # for which a request waits while a model is loaded


class Roster:
    """The profiles as the doors see them. Lives on one event loop.

    presets: by the names that requests call them by.
    """

    def __init__(
        self,
        router: Router,
        admission: Admission,
        *,
        aliases: Mapping[str, str],
        presets: Mapping[str, Preset],
    ) -> None:
        self._router, self._admission = router, admission
        self._aliases, self.presets = aliases, presets

    @property
    def all(self) -> tuple[Standing, ...]:
        """How each profile is; the first is for who names none."""
        return tuple(Standing.of(one) for one in self._router)

    def choose(self, wish: Wish = Wish()) -> str:
        """Find the profile that a request goes to. Raises UnknownModel, InvalidParams."""
        return self._chosen(wish).name

    def of(self, request: GenerationRequest) -> str:
        """The profile of a request, as its door or its model says."""
        return request.profile or self.choose(Wish(model=request.model))

    def standing(self, wish: Wish = Wish()) -> Standing:
        """How the profile is that a request would go to. Raises UnknownModel, InvalidParams."""
        return Standing.of(self._chosen(wish))

    def info(self, profile: str) -> ModelInfo:
        """What is known of a profile's model, or of who stands in for it. Raises NotReady."""
        return _info(self._router.describing(profile))

    def info_for(self, request: GenerationRequest) -> ModelInfo:
        """What is known of the model that draws a request now, or will. Raises NotReady."""
        one, _ = self._router.standing(request)
        return _info(self._router.describing(request.profile) if one.is_down else one)

    def queue_limit(self, profile: str) -> int | None:
        """How many requests may wait for a profile; None: as many as for all."""
        return self._named(profile).profile.queue_limit

    def loras(self, profile: str) -> tuple[LoraRef, ...]:
        """Those that act on a profile's pictures where a request names none."""
        loras = self._named(profile).profile.loras
        return tuple(LoraRef(name, strength) for name, strength in loras.items())

    async def opened(self, profile: str) -> ModelInfo:
        """Wait while nothing is known of a profile's model and it is loaded, as it is then. All
        who wait share it.

        Raises QueueFull when as many wait as may, NotReady when it takes too long.
        """
        one = self._router.describing(profile)
        if one.state == "unloaded" and not one.models:
            one.load()
        if one.state in ("starting", "restarting") and not one.models:
            await self._settled(one)
        return self.info(profile)

    async def load(self, profile: str) -> ModelInfo:
        """Load a profile, even one that has failed, and wait for it. Raises QueueFull, NotReady."""
        one = self._chosen(Wish(profile=profile))
        one.load()
        await self._settled(one)
        if one.state != "ready":
            raise _not_ready(one)
        return one.models[0]

    async def unload(self, profile: str) -> bool:
        """Give a profile's memory back. False: it has work, or is one that stays loaded."""
        one = self._chosen(Wish(profile=profile))
        await one.unload()
        return one.state == "unloaded"

    def _named(self, profile: str) -> OnDemand:
        return next((one for one in self._router if one.name == profile), self._router.default)

    def _chosen(self, wish: Wish) -> OnDemand:
        model = self._aliases.get(wish.model, wish.model) if wish.model else None
        return self._router.choose(
            model=None if model == DEFAULT_MODEL else model,
            profile=wish.profile,
            preferred=wish.preferred,
            priority=wish.priority,
        )

    async def _settled(self, one: OnDemand) -> None:
        with self._admission.waiting(), open_span().child("load"):
            try:
                async with asyncio.timeout(LONGEST_OPENING_S):
                    await one.settled()
            except TimeoutError:
                raise NotReady(f"not ready: {one.reason}", retry_after_s=10.0) from None


def _info(one: OnDemand) -> ModelInfo:
    if one.state in ("failed", "stopped") or not one.models:
        raise _not_ready(one)
    return one.models[0]


def _not_ready(one: OnDemand) -> NotReady:
    return NotReady(f"not ready: {one.reason}", retry_after_s=2.0)
