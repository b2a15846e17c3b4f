"""What a model can do, how it likes to be asked, and what it makes of a request."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, get_args

from fluxline.ability import STRENGTH, ModelInfo, check, steps_left, true_scale
from fluxline.approximation import ApproximationName
from fluxline.models.conditioning import Steering, plain_steer
from fluxline.request import Backend, SamplerName, SamplingParams, ScheduleName

DTYPE_NAMES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
"""Dtypes as people call them."""

SHRUNK = 2.0
"""Times the pixels that are drawn: a larger picture to start from is not made smaller silently."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicShift:
    """Shift as a function of image tokens; the field names of diffusers' scheduler config."""

    base_image_seq_len: int = 256
    max_image_seq_len: int = 4096
    base_shift: float = 0.5
    max_shift: float = 1.15


@dataclass(frozen=True, slots=True)
class EmpiricalShift:
    """Shift as BFL fitted it for FLUX.2: a function of image tokens and of steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class References:
    """How a model looks at pictures besides the one it draws on.

    fitted: "drawn" to the size that is drawn; "own" to the one of `sizes` nearest in shape or,
    where there are none, to about `area` pixels in their own shape; "capped" to their own size
    or, where that is more than `area` pixels, to so many; "given": not at all, as where only what
    they show matters.
    """

    most: int
    is_needed: bool = False  # it draws nothing without
    start_too: bool = False  # where no other is given it looks at the one it starts from
    fitted: Literal["drawn", "own", "capped", "given"] = "own"
    sizes: tuple[tuple[int, int], ...] = ()  # px (width, height)
    area: int = 1024 * 1024  # px
    in_sequence: bool = True  # each takes tokens in the image's sequence
    text_tokens: int = 0  # that each adds to the text
    in_memory: bool = False  # what blocks make of it is kept, and attended to besides


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """What a model can do and how it likes to be asked. Sizes are (width, height) in px."""

    name: str
    family: str
    native_size: tuple[int, int]
    grid: int  # px: sides of what the model draws are multiples of this
    trained_sizes: tuple[tuple[int, int], ...] = ()  # empty: any size up to max_side
    max_side: int
    default_steps: int
    max_steps: int
    text_length: int  # tokens
    guidance: float | None  # the default; None: the model has no such input
    cfg_scale: float = 1.0  # the default of true guidance; 1: off
    steering: "Steering" = field(default_factory=lambda: plain_steer)  # how true guidance is done
    shift: float | DynamicShift | EmpiricalShift = 1.0  # how far schedules bend toward noise
    levels: "Levels | None" = None  # None: all from 1, the lowest as steps and shift have it
    terminal: float | None = None  # to which the lowest sigma is stretched; None: it is not
    backend: Backend = "native"
    fills: bool = False  # it reads source and mask itself, and draws nothing without
    references: References | None = None  # None: it looks at none
    precision: str = ""  # how its weights are held; empty: in the dtype it computes in
    notes: tuple[str, ...] = ()  # what people should know of how it is held
    ranks: int = 1  # that may be asked to approximate a picture together
    approximations: tuple[ApproximationName, ...] = ()  # that those may be asked for
    key_bytes: int = 0  # of a token in a block, that the rank with most heads may remember
    blocks: int = 0

    def info(self, device: str, dtype: str) -> ModelInfo:
        """What the API wing may know of the model."""
        return ModelInfo(
            name=self.name,
            family=self.family,
            native_width=self.native_size[0],
            native_height=self.native_size[1],
            max_width=self.max_side,
            max_height=self.max_side,
            default_steps=self.default_steps,
            max_steps=self.max_steps,
            guidance=self.guidance,
            cfg_scale=self.cfg_scale,
            text_length=self.text_length,
            dtype=dtype,
            device=device,
            samplers=get_args(SamplerName),
            schedules=get_args(ScheduleName),
            sizes=self.trained_sizes,
            references=self.references.most if self.references else 0,
            fills=self.fills,
            needs_picture=self.fills or bool(self.references and self.references.is_needed),
            backend=self.backend,
            ranks=self.ranks,
            approximations=self.approximations,
            key_bytes=self.key_bytes,
            blocks=self.blocks,
            precision=self.precision or DTYPE_NAMES.get(dtype, dtype),
            notes=self.notes,
        )

    def resolve(
        self,
        params: SamplingParams,
        shape: tuple[int, int] | None = None,
        *,
        is_masked: bool = False,
        like: tuple[int, int] | None = None,
    ) -> tuple[SamplingParams, list[str]]:
        """Fill in the model's defaults and check every value.

        shape: (width, height) of the picture to start from; None: noise alone. is_masked: a mask
        says what of it is redrawn. like: (width, height) of the first picture that is looked at; a
        size nobody asked for follows it where there is none to start from. Returns params without
        None (but guidance of a model without, and strength without a picture), and warnings in the
        caller's words. Raises InvalidParams naming the field.
        """
        info = self.info(device="", dtype="")
        check(params, info)
        size = self._size(params, info, shape or like)
        steps = self.default_steps if params.steps is None else params.steps
        strength = None if shape is None else _strength(params, is_masked=is_masked)
        resolved = replace(
            params,
            width=size[0],
            height=size[1],
            steps=steps,
            guidance=self._guidance(params),
            cfg_scale=true_scale(params, info),
            strength=strength,
            loras=params.loras or (),
        )
        return resolved, [
            *_shrunk(params, shape, size),
            *_unseen(strength, steps, is_masked=is_masked),
            *self._ignored(params, info, has_start=shape is not None),
            *self._fitted(*size),
        ]

    def image_tokens(self, width: int, height: int) -> int:
        """Tokens of a picture the model draws at this size, which is on its grid."""
        return (width // self.grid) * (height // self.grid)

    def reference_size(self, shape: tuple[int, int], drawn: tuple[int, int]) -> tuple[int, int]:
        """The size (width, height) on the grid at which a picture of that shape is looked at."""
        assert self.references is not None
        if self.references.fitted == "given":
            return shape
        if self.references.fitted == "drawn":
            return drawn
        if self.references.fitted == "capped":
            scale = min(1.0, math.sqrt(self.references.area / (shape[0] * shape[1])))
            return self._cut(shape[0] * scale), self._cut(shape[1] * scale)
        aspect = shape[0] / shape[1]
        if self.references.sizes:
            return min(self.references.sizes, key=lambda size: abs(size[0] / size[1] - aspect))
        wide = math.sqrt(self.references.area * aspect)
        return self._on_grid(wide), self._on_grid(wide / aspect)

    def reference_tokens(self, sizes: Sequence[tuple[int, int]]) -> int:
        """Tokens that pictures looked at, at those sizes, add to the image's sequence."""
        if self.references is None or not self.references.in_sequence:
            return 0
        return sum(self.image_tokens(*size) for size in sizes)

    def _size(
        self, params: SamplingParams, info: ModelInfo, like: tuple[int, int] | None
    ) -> tuple[int, int]:
        """The size that is asked for; what nobody says of it follows a picture, if there is one."""
        if like is not None:
            return info.size_like(like, params.width, params.height)
        width, height = self.native_size
        return (
            width if params.width is None else params.width,
            height if params.height is None else params.height,
        )

    def _guidance(self, params: SamplingParams) -> float | None:
        """What the model reads as guidance; None: it has no such input."""
        if self.guidance is None or params.guidance is None:
            return self.guidance
        return params.guidance

    def _ignored(
        self, params: SamplingParams, info: ModelInfo, *, has_start: bool
    ) -> Iterator[str]:
        """Tell what of a request acts on nothing."""
        scale = true_scale(params, info)
        if params.strength is not None and not has_start:
            yield f"strength {params.strength:g} ignored: there is no picture to start from"
        if params.guidance is not None and self.guidance is None and not info.is_guided:
            yield f"guidance {params.guidance:g} ignored: {self.name} has no such input"
        if scale < 1.0:
            yield f"cfg_scale {scale:g} ignored: it acts only above 1"
        if params.negative_prompt and scale <= 1.0:
            yield "negative_prompt ignored: it acts only with cfg_scale above 1"
        if params.eta and params.sampler != "ddim":
            yield f"eta {params.eta:g} ignored: only the sampler ddim reads it"

    def _fitted(self, width: int, height: int) -> Iterator[str]:
        """Tell when another size is drawn than is asked, beyond what the grid wants."""
        drawn = self.drawn_size(width, height)
        if drawn != self.snapped(width, height):
            is_same_shape = drawn[0] * height == drawn[1] * width
            fitted = "resampled" if is_same_shape else "cropped and resampled"
            yield (
                f"drawn at {drawn[0]}x{drawn[1]} and {fitted} to {width}x{height}: "
                f"{self.name} was not trained for that size"
            )

    def _cut(self, side: float) -> int:
        return max(1, int(side) // self.grid) * self.grid

    def _on_grid(self, side: float) -> int:
        return max(1, round(side / self.grid)) * self.grid

    def snapped(self, width: int, height: int) -> tuple[int, int]:
        """The size on the model's grid that covers the asked one."""
        return -(-width // self.grid) * self.grid, -(-height // self.grid) * self.grid

    def drawn_size(self, width: int, height: int) -> tuple[int, int]:
        """The size the model draws: on its grid, and a trained one if it has a list of those.

        Among trained sizes the one nearest in shape wins, then the one nearest in area.
        """
        if not self.trained_sizes:
            return self.snapped(width, height)

        def distance(size: tuple[int, int]) -> tuple[float, float]:
            shape = (size[0] * height) / (size[1] * width)
            area = (size[0] * size[1]) / (width * height)
            return max(shape, 1 / shape), max(area, 1 / area)

        return min(self.trained_sizes, key=distance)


def _strength(params: SamplingParams, *, is_masked: bool) -> float:
    """How much of a picture to start from is redrawn; where a mask says what, all of that."""
    if params.strength is not None:
        return params.strength
    return 1.0 if is_masked else STRENGTH


def _shrunk(
    params: SamplingParams, shape: tuple[int, int] | None, size: tuple[int, int]
) -> Iterator[str]:
    """Tell when a picture to start from is drawn much smaller and nobody asked for a size."""
    is_free = params.width is None and params.height is None
    if shape is not None and is_free and math.prod(shape) > SHRUNK * math.prod(size):
        given, drawn = f"{shape[0]}x{shape[1]}", f"{size[0]}x{size[1]}"
        yield f"the picture of {given} is drawn at {drawn}: ask for a size"


def _unseen(strength: float | None, steps: int, *, is_masked: bool) -> Iterator[str]:
    """Tell when a picture to start from is redrawn whole, as far as no mask wants it so."""
    if strength is not None and not is_masked and steps_left(steps, strength) == steps:
        said = f"strength {strength:g} in {steps} steps redraws everything"
        yield f"{said}: the picture given is not seen"


class Levels(Protocol):
    """The noise levels a model was trained at, where it is particular about them."""

    @property
    def by_ratio(self) -> bool:
        """Whether schedules space s / (1 - s), as where the path is variance-preserving."""
        ...

    def spaced(self, steps: int) -> list[float]:
        """Its own choice of so many sigmas before the shift, falling, none of them 0."""
        ...

    def noise_scale(self, sigma: float) -> float:
        """By what noise is multiplied that a picture is drawn from, at its first sigma."""
        ...
