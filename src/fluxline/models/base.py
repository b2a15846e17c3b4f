"""What every model family gives the engine, and what a model says of itself.

The engine knows no family: it asks a `DiffusionModel` for conditioning, noise, velocities and
pictures, and hands back what it was given. No files, no jobs, no HTTP.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar, get_args

import torch
from torch import Generator, Tensor, nn

from fluxline.request import (
    STRENGTH,
    ModelInfo,
    SamplerName,
    SamplingParams,
    ScheduleName,
    check,
    steps_left,
)

DTYPE_NAMES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
"""Dtypes as people call them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicShift:
    """Shift as a function of image tokens; the field names of diffusers' scheduler config."""

    base_image_seq_len: int = 256
    max_image_seq_len: int = 4096
    base_shift: float = 0.5
    max_shift: float = 1.15


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
    shift: float | DynamicShift = 1.0  # how far schedules bend toward noise
    precision: str = ""  # how its weights are held; empty: in the dtype it computes in
    notes: tuple[str, ...] = ()  # what people should know of how it is held

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
            text_length=self.text_length,
            dtype=dtype,
            device=device,
            samplers=get_args(SamplerName),
            schedules=get_args(ScheduleName),
            sizes=self.trained_sizes,
            precision=self.precision or DTYPE_NAMES.get(dtype, dtype),
            notes=self.notes,
        )

    def resolve(
        self, params: SamplingParams, shape: tuple[int, int] | None = None
    ) -> tuple[SamplingParams, list[str]]:
        """Fill in the model's defaults and check every value.

        shape: (width, height) of the picture to start from; None: noise alone. Returns params
        without None (but guidance of a model without, and strength without a picture), and warnings
        in the caller's words. Raises InvalidParams naming the field.
        """
        info = self.info(device="", dtype="")
        check(params, info)
        warnings = []
        width = self.native_size[0] if params.width is None else params.width
        height = self.native_size[1] if params.height is None else params.height
        strength = params.strength
        if shape is None:
            if strength is not None:
                warnings.append(f"strength {strength:g} ignored: there is no picture to start from")
            strength = None
        else:
            width, height = info.size_like(shape, params.width, params.height)
            strength = STRENGTH if strength is None else strength
        steps = self.default_steps if params.steps is None else params.steps
        if strength is not None and steps_left(steps, strength) == steps:
            warnings.append(
                f"strength {strength:g} in {steps} steps redraws everything: "
                "the picture given is not seen"
            )
        guidance = params.guidance
        if self.guidance is None:
            if guidance is not None:
                warnings.append(f"guidance {guidance:g} ignored: {self.name} has no such input")
            guidance = None
        else:
            guidance = self.guidance if guidance is None else guidance
        if params.cfg_scale < 1.0:
            warnings.append(f"cfg_scale {params.cfg_scale:g} ignored: it acts only above 1")
        if params.negative_prompt and params.cfg_scale <= 1.0:
            warnings.append("negative_prompt ignored: it acts only with cfg_scale above 1")
        if params.eta and params.sampler != "ddim":
            warnings.append(f"eta {params.eta:g} ignored: only the sampler ddim reads it")
        drawn = self.drawn_size(width, height)
        if drawn != self.snapped(width, height):
            is_same_shape = drawn[0] * height == drawn[1] * width
            fitted = "resampled" if is_same_shape else "cropped and resampled"
            warnings.append(
                f"drawn at {drawn[0]}x{drawn[1]} and {fitted} to {width}x{height}: "
                f"{self.name} was not trained for that size"
            )
        resolved = replace(
            params, width=width, height=height, steps=steps, guidance=guidance, strength=strength
        )
        return resolved, warnings

    def image_tokens(self, width: int, height: int) -> int:
        """Tokens of a picture the model draws at this size, which is on its grid."""
        return (width // self.grid) * (height // self.grid)

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


Layout = Callable[[str, Tensor], Sequence[tuple[str, int, Tensor]] | None]
"""(checkpoint name, tensor) to the (parameter, first row, part)s it fills; None: unknown."""


class Checkpoint(Protocol):
    """A checkpoint on disk, as a family reads it; `weights` has the real ones."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor's name and shape."""
        ...

    @property
    def kinds(self) -> Mapping[str, str]:
        """The kinds of those that are quantized already, by name."""
        ...

    def fingerprint(self) -> str:
        """A short name for what the tensors say: the same for the same."""
        ...

    def fill(self, model: nn.Module, layout: Layout) -> None:
        """Assign every tensor to the (parameter, first row, part)s its layout gives."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of a model whose linear layers may be held in fewer bits."""

    name: str  # its folder
    checkpoint: Checkpoint
    layout: Layout
    linears: tuple[str, ...]  # patterns of the layers' names, * for any; what is not here stays
    instead: Mapping[str, str] = field(default_factory=dict)  # kinds that others suit better here


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """How a part came to be held. precision: empty where it is in the dtype it computes in."""

    precision: str = ""
    notes: tuple[str, ...] = ()


class Precision(Protocol):
    """How a model's weights shall be held; `engine.precision` has the real one."""

    @property
    def is_kind(self) -> bool:
        """Whether in fewer bits."""
        ...

    def changes(self, part: Part) -> bool:
        """Whether any layer of the part will be held otherwise than as it computes."""
        ...

    def place(self, model: nn.Module, part: Part, device: torch.device) -> Held:
        """Put what holds them in place of a model's linear layers, before it is filled.

        model: on the meta device, as it will be filled; device: where it will compute.
        """
        ...


@dataclass(frozen=True, slots=True)
class Conditioning:
    """What the text encoders made of one prompt; on the model's device, shared and never written.

    text: (L, D) as the transformer reads it. pooled: (pooled_dim,). truncated: the prompt was
    longer than the model reads.
    """

    text: Tensor
    pooled: Tensor
    truncated: bool = False

    @property
    def bytes(self) -> int:
        """Memory it holds."""
        return self.text.nbytes + self.pooled.nbytes


class RowContext(Protocol):
    """Everything one row of a forward needs that is the same in all its evaluations.

    Shared by rows that need the same, through weak references.
    """

    @property
    def image_tokens(self) -> int:
        """N."""
        ...

    @property
    def text_tokens(self) -> int:
        """L."""
        ...


ContextT = TypeVar("ContextT", bound=RowContext)


class DiffusionModel(Protocol[ContextT]):
    """A model family behind one set of verbs. Called from the engine's thread alone."""

    @property
    def spec(self) -> ModelSpec:
        """What the model can do."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        ...

    @property
    def weights(self) -> str:
        """Fingerprint of all its weights, for receipts."""
        ...

    def encode(self, prompts: Sequence[str]) -> list[Conditioning]:
        """Encode prompts, in one batch."""
        ...

    def noise(self, generator: Generator, width: int, height: int) -> Tensor:
        """Draw standard normal image tokens (N, C) float32 from a CPU generator.

        The first draw from a generator of seed s is what diffusers draws for seed s.
        """
        ...

    def context(
        self,
        conditioning: Conditioning,
        *,
        width: int,
        height: int,
        guidance: float | None,
        sigmas: Sequence[float],
    ) -> ContextT:
        """Prepare one row for evaluations at these noise levels."""
        ...

    def evaluate(self, x: Tensor, sigmas: Sequence[float], contexts: Sequence[ContextT]) -> Tensor:
        """Velocity (R, N, C) float32 of tokens x (R, N, C), each row at its sigma and context.

        Rows must agree in image and text tokens and in nothing else.
        """
        ...

    def decode(self, x: Tensor, width: int, height: int) -> Tensor:
        """Pictures uint8 (R, height, width, 3) on the CPU, of clean tokens x (R, N, C)."""
        ...

    def encode_picture(self, pixels: Tensor) -> Tensor:
        """Clean tokens (N, C) float32 of a picture uint8 (h, w, 3), whose sides are on the grid."""
        ...

    def preview(self, x0: Tensor, width: int, height: int) -> Tensor | None:
        """A small picture uint8 (h, w, 3) of expected clean tokens (N, C). None: no map for it."""
        ...
