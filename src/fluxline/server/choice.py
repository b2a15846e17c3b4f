"""What a body says of who shall draw it, and how well: model, profile, quality, priority."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from starlette.types import ASGIApp, Receive, Scope, Send

from fluxline.ability import ModelInfo
from fluxline.errors import InvalidParams
from fluxline.profiles import Preset
from fluxline.request import SamplingParams
from fluxline.server.fields import Fields
from fluxline.service import Wish
from fluxline.service.roster import Roster

MOST_PRIORITY = 10
QUALITY = {
    "low": "draft",
    "medium": "standard",
    "standard": "standard",
    "high": "high",
    "hd": "high",
    "xhigh": "ultra",
    "max": "ultra",
}
"""The presets that OpenAI's words mean; auto is none."""
AUTO = "auto"
TOLD = {"draft": "low", "standard": "medium", "hd": "high", "ultra": "max"}
"""What answers say in place of words that OpenAI's do not have."""
PRESET = "fluxline.profile"  # in a scope: the profile of who names none


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Who draws a request, as what, and by which preset. preset None: none was asked for.

    quality: the same in OpenAI's words, as far as these go.
    """

    profile: str
    info: ModelInfo
    preset: str | None
    bundle: Preset
    quality: str

    @property
    def steps(self) -> int:
        """How many steps the preset means for the model."""
        wanted = round(self.bundle.steps * self.info.default_steps)
        return min(max(wanted, 1), self.info.max_steps)

    def fill(self, params: SamplingParams, *, has_shape: bool = False) -> SamplingParams:
        """Let the preset say what a request leaves open. has_shape: a picture gives the size."""
        if self.preset is None:
            return params
        if params.steps is None:
            params = replace(params, steps=self.steps)
        if params.guidance is None and self.info.guidance is not None:
            params = replace(params, guidance=self.bundle.guidance)
        if not (params.width or params.height or has_shape) and self.bundle.size != 1:
            width, height = self.info.scaled(self.bundle.size)
            params = replace(params, width=width, height=height)
        return params


async def choose(
    fields: Fields,
    roster: Roster,
    scope: Scope,
    *,
    model: str | None = None,
    profile: str | None = None,
) -> Choice:
    """Find out who draws a body, and wait until its model is known.

    model, profile: named by the door itself; a body may not contradict. Raises RequestError naming
    the field that is wrong, QueueFull, NotReady.
    """
    preset, quality = _preset(fields, roster.presets)
    bundle = roster.presets[preset] if preset else Preset()
    by_port = scope.get(PRESET)
    wish = _wish(fields, preferred=(by_port, bundle.profile), model=model, profile=profile)
    chosen = roster.choose(wish)
    info = await roster.opened(chosen)
    return Choice(profile=chosen, info=info, preset=preset, bundle=bundle, quality=quality)


def check_choice(fields: Fields, presets: Mapping[str, Preset]) -> None:
    """Check all that `choose` reads, and choose nothing. Raises InvalidParams."""
    _preset(fields, presets)
    _wish(fields)


def read_priority(fields: Fields) -> int:
    """Read the rank of a request among its owner's; 0 is usual, and more goes first."""
    return fields.integer("priority", low=-MOST_PRIORITY, high=MOST_PRIORITY) or 0


def _wish(
    fields: Fields,
    *,
    preferred: Sequence[str | None] = (),
    model: str | None = None,
    profile: str | None = None,
) -> Wish:
    """Which model or profile a body asks for."""
    named = fields.text("profile")
    if profile is not None and named not in (None, profile):
        message = f"profile must be {profile} here, as the address says; got {named!r}"
        raise InvalidParams(message, field="profile")
    return Wish(
        model=model or fields.text("model"),
        profile=profile or named,
        preferred=tuple(filter(None, preferred)),
        priority=read_priority(fields),
    )


def _preset(fields: Fields, presets: Mapping[str, Preset]) -> tuple[str | None, str]:
    """The preset that a body asks for, by its own name or OpenAI's, and what to call it."""
    named = fields.choice("preset", of=tuple(presets))
    words = {**{name: name for name in presets}, **QUALITY}
    quality = fields.choice("quality", of=(AUTO, *words))
    meant = words.get(quality or "")
    if named and meant and named != meant:
        message = f"quality {quality} means preset {meant}; preset says {named}: give one of them"
        raise InvalidParams(message, field="quality")
    word = quality if meant else named
    return named or meant, TOLD.get(word or "standard", word or "")


class Ports:
    """Notes by which port a caller came, where that says a profile. by_port: the profiles."""

    def __init__(self, app: ASGIApp, by_port: Mapping[int, str]) -> None:
        self._app, self._by_port = app, by_port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102
        server = scope.get("server")
        if server and (profile := self._by_port.get(server[1])):
            scope[PRESET] = profile
        await self._app(scope, receive, send)
