"""The few types that travel through every room: requests, events, results.

Frozen, and made of little but the standard library, so that every front door, both processes and
the tests can hold them. Who writes and who reads each field is said beside it.
"""

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeVar

from fluxline.approximation import Approximation
from fluxline.errors import Cancelled, FluxlineError, error_of

SamplerName = Literal["euler", "heun", "ddim", "dpmpp_2m", "euler_ancestral", "unipc"]
ScheduleName = Literal["simple", "karras", "beta", "exponential"]
ScorerName = Literal["clip", "technical"]
Backend = Literal["native", "diffusers"]
"""Whose network draws: one written here, or diffusers' own in this engine."""
PrecisionName = Literal[
    "auto", "bf16", "fp32", "int8", "int8-dynamic", "fp8", "nf4", "nf4-double", "hqq4", "fp4"
]
MemoryName = Literal["auto", "resident", "offload", "stream", "spread"]
"""Where weights lie: all on the device, a component or a block of it at a time, or over several."""
ImageFormat = Literal["png", "jpeg", "webp", "avif"]
SEED_LIMIT = 2**63
"""Seeds run from 0 to SEED_LIMIT - 1: what a torch generator and a signed database column hold."""


def random_seed() -> int:
    """A seed short enough to be read aloud, and exact in every client's numbers: below 2**32."""
    return secrets.randbelow(2**32)


@dataclass(frozen=True, slots=True)
class LoraRef:
    """An adapter by its name, and how strongly it acts: 1 as it was trained, 0 not at all."""

    name: str
    strength: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How one picture is drawn. None means: the model's own default.

    A front door writes what its caller asked; `ModelSpec.resolve` fills the rest in and
    checks it; what comes back in `ImageResult.params` has no None left, except `guidance` of a
    model that has none and `strength` of a picture drawn from noise alone and `parallel`.
    """

    width: int | None = None  # px of the picture that comes out
    height: int | None = None  # px
    steps: int | None = None  # intervals of the schedule; heun evaluates twice in each but the last
    sampler: SamplerName = "euler"
    schedule: ScheduleName = "simple"
    guidance: float | None = None  # distilled guidance, an input of dev-class models
    cfg_scale: float | None = None  # true classifier-free guidance; above 1 it takes two rows
    negative_prompt: str = ""  # the other row's prompt, used when cfg_scale > 1
    eta: float = 0.0  # ddim: 0 deterministic, 1 ancestral
    strength: float | None = None  # of the source that is redrawn: above 0, 1 is all of it
    loras: tuple[LoraRef, ...] | None = None  # that act on it; None: the server's, if it has any
    parallel: Approximation | None = None  # by ranks that do not wait for each other; None: exactly


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """One picture of a request that says of each what it shall be."""

    seed: int
    params: SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One request as every front door states it: n pictures of one prompt, or a plan of them.

    Picture i is drawn with seed `seed + i`, or as the plan says. Seeds are chosen at the door, so
    that a request retried after a crash draws the same pictures.
    """

    id: str
    prompt: str
    seed: int
    n: int = 1
    source: bytes | None = None  # the file of a picture to start from; None: noise alone
    mask: bytes | None = None  # the file that says what of the source is redrawn; None: all
    references: tuple[bytes, ...] = ()  # files of pictures that are looked at
    model: str | None = None  # None: the server's default
    profile: str | None = None  # who shall draw it; None: as the model says. Read by the fleet
    params: SamplingParams = field(default_factory=SamplingParams)
    plan: tuple[Planned, ...] = ()  # every picture by itself, in place of n, seed and params
    spread: int = 1  # most replicas that may share its pictures; read by the fleet
    output_format: ImageFormat = "png"  # read by the worker
    compression: int | None = None  # 0-100: quality; png ignores it
    top_k: int | None = None  # score the n pictures and keep the best so many; None: keep all
    preview_every: int = 0  # evaluations between two previews; 0: none
    priority: int = 0  # higher goes first; read by the scheduler
    owner: str = ""  # whom fairness counts it for; read by the scheduler
    traceparent: str = ""  # the span it was asked in; by the service, for who draws it

    @property
    def count(self) -> int:
        """How many pictures it asks for."""
        return len(self.plan) or self.n

    def pictures(self) -> tuple[Planned, ...]:
        """What each picture shall be."""
        if self.plan:
            return self.plan
        seeds = ((self.seed + i) % SEED_LIMIT for i in range(self.n))
        return tuple(Planned(seed=seed, params=self.params) for seed in seeds)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageResult:
    """One finished picture, encoded, with everything needed to make it again."""

    index: int  # which of the request's n pictures
    seed: int
    data: bytes  # the encoded file
    format: ImageFormat
    width: int
    height: int
    model: str
    params: SamplingParams  # as really used
    timings_s: Mapping[str, float]  # queue, encode, denoise, decode, compress
    text_tokens: int = 0  # that the model read, padding too
    image_tokens: int = 0  # that it drew
    score: float | None = None  # how good it is, if top_k was asked; more is better
    scorer: ScorerName | None = None  # who says so; only a clip has read the prompt
    profile: str = ""  # who drew it; written by the fleet, read by the doors
    stored: str | None = None  # its key in the store; written by the service, read by the doors
    backend: Backend = "native"
    warnings: tuple[str, ...] = ()  # e.g. drawn smaller and resampled


@dataclass(frozen=True, slots=True)
class Queued:
    """Accepted; `position` requests stand before it (0: next)."""

    request_id: str
    position: int = 0


@dataclass(frozen=True, slots=True)
class Started:
    """The first picture of the request has begun."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Progress:
    """Picture `index` has done `evaluation` of `total` model evaluations."""

    request_id: str
    index: int
    evaluation: int
    total: int
    preview: bytes | None = None  # a small picture, encoded as the result, of the expected end (x0)


@dataclass(frozen=True, slots=True)
class ImageReady:
    """One picture is finished."""

    request_id: str
    image: ImageResult


@dataclass(frozen=True, slots=True)
class Done:
    """Every picture of the request has been delivered. Nothing follows."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The request failed. Nothing follows; pictures delivered before stay good."""

    request_id: str
    code: str  # FluxlineError.code
    message: str


@dataclass(frozen=True, slots=True)
class CancelledEvent:
    """The request was cancelled by its caller. Nothing follows."""

    request_id: str


Event = Queued | Started | Progress | ImageReady | Done | Failed | CancelledEvent
Terminal = Done | Failed | CancelledEvent


class Scored(Protocol):
    """A picture, with its file or without."""

    @property
    def index(self) -> int:
        """Which of the request's pictures."""
        ...

    @property
    def score(self) -> float | None:
        """How good it is."""
        ...


ScoredT = TypeVar("ScoredT", bound=Scored)


def best(images: Iterable[ScoredT], top_k: int | None) -> list[ScoredT]:
    """The top_k best of a request's pictures, best first; of equals the earlier. None: all, in
    their order."""
    if top_k is None:
        return sorted(images, key=lambda image: image.index)
    return sorted(images, key=lambda image: (-(image.score or 0.0), image.index))[:top_k]


def ranks(images: Iterable[Scored]) -> dict[int, int]:
    """The places of pictures by their index, 1 the best; empty where none has a score."""
    scored = [image for image in images if image.score is not None]
    return {image.index: place for place, image in enumerate(best(scored, len(scored)), 1)}


def failure_of(event: Event) -> FluxlineError | None:
    """The error that an event stands for, if it is one."""
    match event:
        case Failed(code=code, message=message):
            return error_of(code, message)
        case CancelledEvent():
            return Cancelled("the request was cancelled")
    return None
