"""What a model can do, and what follows of it for a request: whether it may be drawn, in how much
memory, time and work.

Written by whoever holds the model, read at every door without one.
"""

import math
from dataclasses import dataclass

from fluxline.approximation import Approximation, ApproximationName, remembered
from fluxline.errors import InvalidParams, RequestError, TooLarge
from fluxline.request import Backend, GenerationRequest, LoraRef, SamplingParams

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


@dataclass(frozen=True, slots=True, kw_only=True)
class InBands:
    """What decoding a picture in bands of rows takes."""

    kept_bytes: float  # a pixel of the picture
    band_bytes: float  # and a pixel of one band
    band_pixels: int  # of a band

    def bytes(self, pixels: int) -> float:
        """For a picture of so many."""
        return pixels * self.kept_bytes + min(pixels, self.band_pixels) * self.band_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """What memory drawing takes beside the model: measured by the engine as it opens, read at the
    doors.

    It grows with the tokens of a forward and with the pixels of a picture that is decoded, and the
    greater of the two is what a picture needs. A picture too large to be decoded whole is decoded
    in bands, where the model can.
    """

    free_bytes: int  # of the device, that drawing may take
    token_bytes: float  # of a forward
    pixel_bytes: float  # of decoding, whole
    in_bands: InBands | None = None  # None: the model decodes whole alone
    grid: int  # px: a token is so many squared

    @property
    def whole_pixels(self) -> int:
        """The most that are decoded whole."""
        return int(self.free_bytes / self.pixel_bytes)

    def tokens_beside(self, kept_bytes: int) -> int:
        """Of a forward that has room while so many bytes are held by another."""
        return int((self.free_bytes - kept_bytes) / self.token_bytes)

    def pixels_beside(self, kept_bytes: int) -> int:
        """Of a decoding, whole, that have room while so many bytes are held by another."""
        return int((self.free_bytes - kept_bytes) / self.pixel_bytes)

    def bytes(self, *, tokens: int, pixels: int) -> int:
        """What a picture of that many pixels needs, whose evaluation has so many tokens."""
        return math.ceil(max(tokens * self.token_bytes, self.decoding_bytes(pixels)))

    def decoding_bytes(self, pixels: int) -> float:
        """What decoding so many pixels takes: whole where that fits, else in bands."""
        if pixels <= self.whole_pixels or self.in_bands is None:
            return pixels * self.pixel_bytes
        return self.in_bands.bytes(pixels)

    def vet(
        self, width: int, height: int, *, rows: int, other_tokens: int, kept_bytes: float = 0.0
    ) -> None:
        """Refuse a picture that never fits. other_tokens: of a row, that are not the picture's.
        kept_bytes: a token, from one evaluation to the next.

        Raises TooLarge with the size of that shape that would fit.
        """
        needed = self._needed(width, height, rows, other_tokens, kept_bytes)
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
            if self._needed(wide, high, rows, other_tokens, kept_bytes) <= self.free_bytes:
                raise TooLarge(f"{message}: {wide}x{high} would fit")
        raise TooLarge(f"{message}: nothing of that shape would fit")

    def _needed(
        self, width: int, height: int, rows: int, other_tokens: int, kept_bytes: float
    ) -> int:
        tokens = -(-width // self.grid) * -(-height // self.grid) + other_tokens
        kept = math.ceil(rows * tokens * kept_bytes)
        return kept + self.bytes(tokens=rows * tokens, pixels=width * height)


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
    ranks: int = 1  # that may be asked to approximate a picture together
    approximations: tuple[ApproximationName, ...] = ()  # that those ranks may be asked for
    key_bytes: int = 0  # of a token in a block, that the rank with most heads may remember
    blocks: int = 0

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


def check_all(request: GenerationRequest, info: ModelInfo) -> None:
    """Refuse a request that was let in for another model, if this one cannot draw it.

    Raises InvalidParams, TooLarge.
    """
    check_pictures(request, info)
    if len(request.references) > info.references:
        message = f"{info.name} looks at {info.references} pictures at most"
        raise InvalidParams(f"{message}; got {len(request.references)}", field="references")
    for params in {picture.params for picture in request.pictures()}:
        check(params, info)
        if params.loras and not info.wears_loras:
            raise InvalidParams(f"{info.name} is drawn without LoRA", field="loras")


def may_stand_in(request: GenerationRequest, info: ModelInfo, asked: ModelInfo | None) -> bool:
    """Whether a model draws what was asked of another, and means the same by it. asked: of the
    other; None: nobody knows.
    """
    try:
        check_all(request, info)
    except RequestError:
        return False
    if asked is None:
        return True
    every = {picture.params for picture in request.pictures()}
    if asked.family != info.family and any(params.loras for params in every):
        return False  # LoRAs are of a family
    is_masked = request.mask is not None
    return request.source is None or all(
        is_looked_at(params, asked, is_masked=is_masked)
        == is_looked_at(params, info, is_masked=is_masked)
        for params in every
    )


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
    if params.parallel is not None:
        check_approximation(params.parallel, params, info)
    if info.footprint is not None and not info.sizes:  # which all fit, whatever is asked
        info.footprint.vet(
            params.width or info.native_width,
            params.height or info.native_height,
            rows=2 if true_scale(params, info) > 1 else 1,
            other_tokens=info.text_length,
            kept_bytes=kept_bytes(params.parallel, info),
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


def check_approximation(asked: Approximation, params: SamplingParams, info: ModelInfo) -> None:
    """Refuse what a model's ranks cannot be asked for. Raises InvalidParams."""
    if asked.mode in info.approximations:
        asked.settled(_evaluations(params, params.steps or info.default_steps), info.ranks)
        return
    known = ", ".join(info.approximations) or "none"
    message = f"{info.name} cannot be drawn by {asked.mode} here; there is {known}"
    if info.ranks == 1:
        message = f"parallel {asked.mode} takes several ranks; {info.name} is drawn by one"
    axis = "stages" if asked.mode == "pipefusion" else "ulysses"
    helps = f"start it with --parallel {axis}=2, or leave parallel out to have it drawn exactly"
    raise InvalidParams(f"{message}: {helps}", field="parallel")


def kept_bytes(asked: Approximation | None, info: ModelInfo) -> int:
    """Bytes a token that a rank remembers from one evaluation to the next; None: exactly drawn."""
    if asked is None:
        return 0
    return info.key_bytes * remembered(asked.mode, info.blocks, info.ranks)


def _evaluations(params: SamplingParams, steps: int) -> int:
    return 2 * steps - 1 if params.sampler == "heun" else steps


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
    """Predict the work of a request in pixels x evaluations, rows with a negative prompt twice.

    What is approximated counts as the evaluations that ranks draw exactly meanwhile: as many as it
    has by piflux and distrifusion, more by pipefusion.
    """

    def of(params: SamplingParams) -> float:
        pixels = (params.width or info.native_width) * (params.height or info.native_height)
        count = _evaluations(params, walked_steps(request, params, info))
        work = float(pixels * count * (2 if true_scale(params, info) > 1 else 1))
        if params.parallel is not None:
            work *= info.ranks * params.parallel.time(count, info.ranks) / count
        return work

    return sum(of(picture.params) for picture in request.pictures())
