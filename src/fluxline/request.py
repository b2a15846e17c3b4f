"""The few types that travel through every room: requests, events, results.

Frozen, and made of little but the standard library, so that every front door, both processes and
the tests can hold them. Who writes and who reads each field is said beside it.
"""

import math
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeVar

from fluxline.errors import Cancelled, FluxlineError, InvalidParams, TooLarge, error_of

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

SMALLEST_SIDE = 1  # px
SIDE_TILE = 16  # px: of a side that nobody asked for, what it is a multiple of
NARROWEST = 4.0
"""Sides of a picture to each other, where nobody asked for them."""
STRENGTH = 0.75
"""Of a picture that a request starts from, what is redrawn unless it says; with a mask, all."""
MOST_LORAS = 8
"""Of one picture."""
STRONGEST = 10.0
"""How strongly a LoRA may act, either way."""
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
    model that has none and `strength` of a picture drawn from noise alone.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """What drawing takes beside the model: measured by the engine as it opens, read at the doors.

    Memory grows with the tokens of a forward and with the pixels of a picture that is decoded, and
    the greater of the two is what a picture needs. Time grows with the tokens of a row and, as each
    attends to each, with their square.
    """

    free_bytes: int  # of the device, that drawing may take
    token_bytes: float  # of a forward
    pixel_bytes: float  # of decoding
    token_s: float
    pair_s: float  # for each token and token of a row
    pixel_s: float  # of decoding
    grid: int  # px: a token is so many squared

    def bytes(self, *, tokens: int, pixels: int) -> int:
        """What a picture of that many pixels needs, whose evaluation has so many tokens."""
        return math.ceil(max(tokens * self.token_bytes, pixels * self.pixel_bytes))

    def seconds(self, *, row_tokens: int, rows: int, evaluations: int, pixels: int) -> float:
        """How long a picture takes, drawn alone."""
        forward_s = rows * row_tokens * (self.token_s + row_tokens * self.pair_s)
        return evaluations * forward_s + pixels * self.pixel_s

    def vet(self, width: int, height: int, *, rows: int, other_tokens: int) -> None:
        """Refuse a picture that never fits. other_tokens: of a row, that are not the picture's.

        Raises TooLarge with the size of that shape that would fit.
        """
        needed = self._needed(width, height, rows, other_tokens)
        if needed <= self.free_bytes:
            return
        message = (
            f"{width}x{height} needs {_gib(needed)} of memory beside the model; "
            f"{_gib(self.free_bytes)} are there"
        )
        most = max(width, height) // self.grid
        for tiles in range(most, 0, -1):
            wide, high = (
                self.grid * max(1, round(tiles * side / max(width, height)))
                for side in (width, height)
            )
            if self._needed(wide, high, rows, other_tokens) <= self.free_bytes:
                raise TooLarge(f"{message}: {wide}x{high} would fit")
        raise TooLarge(f"{message}: nothing of that shape would fit")

    def _needed(self, width: int, height: int, rows: int, other_tokens: int) -> int:
        tokens = -(-width // self.grid) * -(-height // self.grid) + other_tokens
        return self.bytes(tokens=rows * tokens, pixels=width * height)


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What a worker says of a model it serves; read by `/v1/models` and by people."""

    name: str
    family: str  # "flux1"
    native_width: int  # px, what comes out when no size is asked
    native_height: int
    max_width: int  # px, the largest that may be asked
    max_height: int
    default_steps: int
    max_steps: int
    guidance: float | None  # default distilled guidance; None: the model has none
    cfg_scale: float = 1.0  # default true guidance; 1: none unless asked
    text_length: int  # tokens of prompt the model reads
    dtype: str
    device: str
    samplers: tuple[str, ...]
    schedules: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...] = ()  # px (width, height) it was trained for; empty: any
    precision: str = ""  # how its weights are really held in memory: "bf16", "nf4", "Q4_K+Q6_K"
    notes: tuple[str, ...] = ()  # what people should know of that
    references: int = 0  # most pictures it looks at
    fills: bool = False  # it redraws the masked part of a picture and draws nothing else
    needs_picture: bool = False  # it draws nothing without one
    wears_loras: bool = True  # LoRAs of its family can be read
    footprint: Footprint | None = None  # None: not measured
    backend: Backend = "native"

    @property
    def is_guided(self) -> bool:
        """Whether it is usually asked with a scale of guidance, distilled or true."""
        return self.guidance is not None or self.cfg_scale > 1

    def size_like(
        self, shape: tuple[int, int], width: int | None = None, height: int | None = None
    ) -> tuple[int, int]:
        """The size (width, height) for a picture drawn from one of that shape, in px.

        What was asked stays; what was not follows the shape: of one side asked the other; of none,
        the trained size nearest in shape, or about as many pixels as the native size has.
        """
        aspect = min(max(shape[0] / shape[1], 1 / NARROWEST), NARROWEST)
        if width and height:
            return width, height
        if width:
            return width, _side(width / aspect, self.max_height)
        if height:
            return _side(height * aspect, self.max_width), height
        if self.sizes:
            return min(self.sizes, key=lambda size: self._distance(size, aspect))
        side = math.sqrt(self.native_width * self.native_height)
        wide, high = side * math.sqrt(aspect), side / math.sqrt(aspect)
        return _side(wide, self.max_width), _side(high, self.max_height)

    def scaled(self, factor: float) -> tuple[int, int]:
        """The native size (width, height) times a factor, in px."""
        wide, high = self.native_width * factor, self.native_height * factor
        return _side(wide, self.max_width), _side(high, self.max_height)

    def _distance(self, size: tuple[int, int], aspect: float) -> tuple[float, float]:
        """How far a size is from a shape, and from the native area."""
        area = size[0] * size[1] / (self.native_width * self.native_height)
        return abs(math.log(size[0] / size[1] / aspect)), abs(math.log(area))


def _side(wanted: float, most: int) -> int:
    """A side of whole tiles near the wanted one, so that nothing of what is drawn is cut."""
    tiles = max(1, round(wanted / SIDE_TILE))
    return min(tiles * SIDE_TILE, most)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """What an engine has done since it was opened: running totals, and how it stands now.

    Written by the worker, read by the metrics.
    """

    forwards: int = 0
    rows: int = 0  # of all forwards: rows / forwards is the mean batch
    tokens: int = 0  # of all rows
    evaluated_s: float = 0.0
    prompts_encoded: int = 0
    prompts_cached: int = 0
    batch_tokens: int = 0  # budget of one forward, now
    device_bytes: int = 0  # of the card, that tensors hold; 0 on a CPU
    device_bytes_reserved: int = 0
    process_bytes: int = 0  # of the machine, that the process holds


def check_pictures(request: GenerationRequest, info: ModelInfo) -> None:
    """Refuse a request without the pictures that its model draws from. Raises InvalidParams."""
    if info.fills and (request.source is None or request.mask is None):
        field = "image" if request.source is None else "mask"
        message = f"{info.name} fills a part of a picture: give image and mask"
        raise InvalidParams(message, field=field)
    if info.needs_picture and request.source is None and not request.references:
        raise InvalidParams(f"{info.name} draws after a picture: give image", field="image")


def check(params: SamplingParams, info: ModelInfo) -> None:
    """Refuse what the model cannot do, at any door.

    Raises InvalidParams naming the field, TooLarge for what never fits into its memory.
    """
    for name, value, low, high in (
        ("width", params.width, SMALLEST_SIDE, info.max_width),
        ("height", params.height, SMALLEST_SIDE, info.max_height),
        ("steps", params.steps, 1, info.max_steps),
    ):
        if value is not None and (type(value) is not int or not low <= value <= high):
            message = f"{name} must be a whole number from {low} to {high}; got {value!r}"
            raise InvalidParams(message, field=name)
    guidance = params.guidance if info.guidance is not None else None
    for name, scale, most in (
        ("cfg_scale", true_scale(params, info), 30),
        ("eta", params.eta, 1),
        ("guidance", guidance, 100),
        ("strength", params.strength, 1),
    ):
        if scale is not None and not 0 <= scale <= most:
            raise InvalidParams(f"{name} must be from 0 to {most}; got {scale:g}", field=name)
    if params.strength == 0:
        message = "strength must be above 0: at 0 nothing would be drawn"
        raise InvalidParams(message, field="strength")
    for name, word, known in (
        ("sampler", params.sampler, info.samplers),
        ("schedule", params.schedule, info.schedules),
    ):
        if word not in known:
            message = f"{name} must be one of {', '.join(known)}; got {word!r}"
            raise InvalidParams(message, field=name)
    check_loras(params.loras or ())
    if info.footprint is not None and not info.sizes:  # which all fit, whatever is asked
        info.footprint.vet(
            params.width or info.native_width,
            params.height or info.native_height,
            rows=2 if true_scale(params, info) > 1 else 1,
            other_tokens=info.text_length,
        )


def check_loras(loras: tuple[LoraRef, ...]) -> None:
    """Refuse what no model could do, whatever the names mean. Raises InvalidParams."""
    if len(loras) > MOST_LORAS:
        message = f"loras must be at most {MOST_LORAS}; got {len(loras)}"
        raise InvalidParams(message, field="loras")
    for lora in loras:
        if not isinstance(lora.name, str) or not lora.name:
            raise InvalidParams(f"a LoRA needs a name; got {lora.name!r}", field="loras")
        if not -STRONGEST <= lora.strength <= STRONGEST:
            message = f"strength of LoRA {lora.name!r} must be from {-STRONGEST:g} to {STRONGEST:g}"
            raise InvalidParams(f"{message}; got {lora.strength:g}", field="loras")
    names = [lora.name for lora in loras]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidParams(f"LoRA {twice[0]!r} is named twice", field="loras")


def true_scale(params: SamplingParams, info: ModelInfo) -> float:
    """The true guidance of a request; `guidance` means it where a model has no other."""
    if params.cfg_scale is not None:
        return params.cfg_scale
    if params.guidance is not None and info.guidance is None and info.is_guided:
        return params.guidance
    return info.cfg_scale


def steps_left(steps: int, strength: float) -> int:
    """Steps of a schedule that are walked from a picture of which `strength` is redrawn; one at
    least.

    Source: diffusers, FluxImg2ImgPipeline.get_timesteps.
    """
    return max(1, steps - int(max(steps - min(steps * strength, steps), 0)))


def is_looked_at(params: SamplingParams, info: ModelInfo, *, is_masked: bool) -> bool:
    """Whether the picture of a request is looked at and not drawn on: so do models that look at
    pictures, unless a mask or a strength says otherwise."""
    return info.references > 0 and not is_masked and params.strength is None


def walked_steps(request: GenerationRequest, params: SamplingParams, info: ModelInfo) -> int:
    """Steps that one of its pictures walks: not all where another picture is drawn on."""
    steps, is_masked = params.steps or info.default_steps, request.mask is not None
    if request.source is None or is_looked_at(params, info, is_masked=is_masked):
        return steps
    usual = STRENGTH if request.mask is None else 1.0
    return steps_left(steps, usual if params.strength is None else params.strength)


def cost(request: GenerationRequest, info: ModelInfo) -> float:
    """Predict the work of a request in pixels x evaluations, rows with a negative prompt twice."""

    def of(params: SamplingParams) -> float:
        pixels = (params.width or info.native_width) * (params.height or info.native_height)
        steps = walked_steps(request, params, info)
        evaluations = 2 * steps - 1 if params.sampler == "heun" else steps
        return float(pixels * evaluations * (2 if true_scale(params, info) > 1 else 1))

    return sum(of(picture.params) for picture in request.pictures())


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
