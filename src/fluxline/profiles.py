"""What a server can be asked for by name: profiles, which draw, and presets, which say how.

Plain values, read from the settings. Whether a profile is loaded is the business of `fleet`.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import PurePath
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from fluxline.degrees import AUTO, Degrees, degrees_of
from fluxline.errors import InvalidParams

Device = Literal["auto", "cuda", "mps", "cpu"]
Memory = Literal["auto", "resident", "offload", "stream", "spread"]
Precision = Literal[
    "auto", "bf16", "fp32", "int8", "int8-dynamic", "fp8", "nf4", "nf4-double", "hqq4", "fp4"
]
Load = Literal["eager", "lazy"]


def _parallel(text: str) -> str:
    if text == AUTO:
        return text
    try:
        degrees_of(text)
    except InvalidParams as exc:
        raise ValueError(exc.message) from exc
    return text


Parallel = Annotated[str, AfterValidator(_parallel)]
Name = Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[^/]+$")]
Card = Annotated[int, Field(ge=0, le=1023)]

GIB = 2**30


class Profile(BaseModel):
    """A named way to draw: a model, where it runs, when it is loaded, and who stands in for it.

    loras: strengths of those that act where a request names none. needs_gb: memory it takes, as
    long as nobody has measured it. from_priority: requests of at least that priority go there, if
    they name nothing else.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    model: str = Field(min_length=1)
    device: Device = "auto"
    devices: tuple[Card, ...] = ()
    replicas: int | None = Field(default=None, ge=1, le=64)
    parallel: Parallel = ""
    precision: Precision = "auto"
    memory: Memory = "auto"
    weights_gb: float | None = Field(default=None, gt=0)
    loras: Mapping[str, float] = Field(default_factory=dict)
    load: Load = "eager"
    idle_unload_s: float | None = Field(default=None, gt=0)
    needs_gb: float | None = Field(default=None, gt=0)
    queue_limit: int | None = Field(default=None, ge=1)
    from_priority: int | None = Field(default=None, ge=-10, le=10)
    fallback: str = ""

    @property
    def model_name(self) -> str:
        """The model without the folder or the organization it lies in."""
        return PurePath(self.model).name or self.model

    @property
    def is_lazy(self) -> bool:
        """Whether it is loaded when somebody asks for it, and may be unloaded."""
        return self.load == "lazy"

    @property
    def is_auto(self) -> bool:
        """Whether its degrees are still to be chosen; until then nobody knows its workers."""
        return self.parallel == AUTO

    @property
    def has_gaps(self) -> bool:
        """Whether its devices are other than cards in a row."""
        return not _is_row(self.devices)

    @property
    def members(self) -> int:
        """How many workers it has: as many as it says, else one for each of its devices, or for
        each so many of them as draw together."""
        degrees = self.degrees
        several = degrees.data if degrees.data > 1 else None
        return self.replicas or several or max(1, len(self.devices) // degrees.ranks)

    @property
    def degrees(self) -> Degrees:
        """How many ranks a worker is, and what they divide."""
        return degrees_of(self.parallel)

    @property
    def needs_bytes(self) -> int:
        """Memory it takes, as far as the settings say."""
        return int((self.needs_gb or 0.0) * GIB)

    def device_of(self, member: int) -> str:
        """Where one of its workers runs, as `cuda:1` if it is told which card to take."""
        first = member * self.degrees.ranks
        if self.devices:
            return f"{self.device}:{self.devices[first % len(self.devices)]}"
        return self.device if self.members == 1 else f"{self.device}:{first}"

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if self.devices and self.device in ("cpu", "mps"):
            raise ValueError(f"devices are numbers of cards, and device {self.device} has none")
        if self.idle_unload_s is not None and not self.is_lazy:
            raise ValueError('idle_unload_s needs load = "lazy": an eager profile stays loaded')
        if self.weights_gb is not None and self.memory not in ("auto", "offload", "stream"):
            raise ValueError(
                f"weights_gb bounds weights that visit a card; memory is {self.memory}"
            )
        if not self.is_auto:
            self._ranks_agree()
        if self.fallback == self.name:
            raise ValueError("fallback must name another profile")
        return self

    def _ranks_agree(self) -> None:
        """Raises ValueError where ranks that draw together cannot be as the rest says."""
        degrees = self.degrees
        if self.memory == "spread" and (self.devices or self.members > 1):
            raise ValueError('memory "spread" takes all cards: leave out devices and replicas')
        if degrees.data > 1 and self.replicas not in (None, degrees.data):
            raise ValueError(f"parallel says data={degrees.data}, replicas {self.replicas}")
        if degrees.ranks == 1:
            return
        if self.memory not in ("auto", "resident"):
            raise ValueError(f"memory {self.memory} is of one rank alone; parallel has several")
        groups = [
            self.devices[first : first + degrees.ranks]
            for first in range(0, len(self.devices), degrees.ranks)
        ]
        if any(len(group) < degrees.ranks or not _is_row(group) for group in groups):
            message = f"devices must be {degrees.ranks} cards in a row for each replica"
            raise ValueError(f"{message} of parallel = {self.parallel!r}")


def _is_row(cards: Sequence[int]) -> bool:
    return all(after == card + 1 for card, after in pairwise(cards))


class Preset(BaseModel):
    """A named bundle of parameters; what a request says itself wins.

    steps, size: in the model's own defaults. guidance: None: the model's own. profile: who draws
    it, if the request does not say.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: float = Field(default=1.0, gt=0, le=20)
    size: float = Field(default=1.0, gt=0, le=8)
    guidance: float | None = Field(default=None, ge=0, le=100)
    profile: str = ""


PRESETS: Mapping[str, Preset] = {
    "draft": Preset(steps=0.5),
    "standard": Preset(),
    "high": Preset(steps=1.5),
    "ultra": Preset(steps=3.0),
}


def misfit(profiles: Iterable[Profile], limit_bytes: int) -> str:
    """Say why profiles can not share so much memory; nothing where they can."""
    profiles = list(profiles)
    for one in profiles:
        if one.needs_gb is None:
            return f"profile {one.name} must say needs_gb, since memory_gb bounds what is loaded"
    eager = [one for one in profiles if not one.is_lazy]
    stays_bytes = sum(one.needs_bytes for one in eager)
    if stays_bytes > limit_bytes:
        return f"the eager profiles need {stays_bytes / GIB:g} GiB, more than memory_gb"
    for one in profiles:
        if one.is_lazy and stays_bytes + one.needs_bytes > limit_bytes:
            beside = f" beside the {stays_bytes / GIB:g} of the eager ones" if eager else ""
            return f"profile {one.name} needs {one.needs_gb:g} GiB{beside}, more than memory_gb"
    return ""
