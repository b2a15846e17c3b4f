"""What every model family gives the engine.

The engine knows no family: it asks a `DiffusionModel` for conditioning, noise, velocities and
pictures, and hands back what it was given. No files, no jobs, no HTTP.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeVar, runtime_checkable

import torch
from torch import Generator, Tensor, nn

from fluxline.models.bands import Bands
from fluxline.models.conditioning import Conditioning
from fluxline.models.spec import ModelSpec
from fluxline.ops.adapter import Learned
from fluxline.ops.bound import Staged

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

    def tensors(self) -> Iterator[tuple[str, object]]:
        """Every (name, tensor), one in memory at a time; quantized ones as they lie in the file."""
        ...

    def fingerprint(self) -> str:
        """A short name for what the tensors say: the same for the same."""
        ...

    def fill(self, model: nn.Module, layout: Layout) -> None:
        """Assign every tensor to the (parameter, first row, part)s its layout gives."""
        ...


Side = Literal["heads", "inner"]
"""What lies along a side of a weight and may be dealt out: attention's heads, or an MLP's inner
width."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seams:
    """Where the layers of a network may be cut for ranks that each hold a share of them.

    Layers are named by patterns, * for any. rows: what lies side by side in a layer's answer.
    columns: in what it reads; its answers are then summed. gathered: layers of which any rows may
    be cut, and whose answers all ranks need whole.
    """

    heads: int
    head_dim: int
    inner: int
    rows: Mapping[str, tuple[Side, ...]]
    columns: Mapping[str, tuple[Side, ...]]
    gathered: tuple[str, ...] = ()


@runtime_checkable
class SplitsHeads(Protocol):
    """A module of a network that splits what it projects by heads."""

    heads: int
    """Those that its projections give here: all, or this rank's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of a model whose linear layers may be held in fewer bits, or by many ranks."""

    name: str  # its folder
    checkpoint: Checkpoint
    layout: Layout
    linears: tuple[str, ...]  # patterns of the layers' names, * for any; what is not here stays
    instead: Mapping[str, str] = field(default_factory=dict)  # kinds that others suit better here
    seams: Seams | None = None  # None: it is not cut


Share = Callable[[nn.Module, Part], Part]
"""Leaves a rank's share of a network on the meta device, and gives the part that fills it."""


def whole(network: nn.Module, part: Part) -> Part:
    """Leave all of it: the share of a rank alone."""
    return part


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """How a part came to be held. precision: empty where it is in the dtype it computes in."""

    precision: str = ""
    notes: tuple[str, ...] = ()

    def told_beside(self, main: "Held", part: str) -> tuple[str, ...]:
        """The notes on a part of that name, and its precision if that is not the main one's."""
        if self.precision == main.precision:
            return self.notes
        how = f"is held as {self.precision}" if self.precision else "is not quantized"
        return (f"{part} {how}", *self.notes)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """What a row is shown besides its prompt; uint8 on the CPU, their sides on the grid unless
    `References` lets them be as they were given.

    canvas: (height, width, 3), the source at the size that is drawn. mask: (height, width) of it,
    255 where it is redrawn. references: (h, w, 3) each, in the order given.
    """

    canvas: Tensor | None = None
    mask: Tensor | None = None
    references: tuple[Tensor, ...] = ()


class Guide(Protocol):
    """What a model made of `Pictures`: on its device, shared by rows through weak references and
    never written. A row's context holds it."""

    @property
    def bytes(self) -> int:
        """Memory it holds."""
        ...


@dataclass(frozen=True, slots=True)
class Network:
    """A network of a model, for whoever decides where its weights lie.

    units: modules that hold nearly all its weights, in the order in which they are called, every
    time. once: names of linear layers that are called once a request, and need not be at hand.
    is_chain: nobody but the next unit reads what a unit gives.
    """

    module: nn.Module
    units: tuple[nn.Module, ...]
    once: tuple[str, ...] = ()
    is_chain: bool = False


class RowContext(Protocol):
    """Everything one row of a forward needs that is the same in all its evaluations.

    Shared by rows that need the same, through weak references.
    """

    @property
    def image_tokens(self) -> int:
        """N, and those of pictures that are looked at."""
        ...

    @property
    def text_tokens(self) -> int:
        """L, with what pictures add to it."""
        ...


ContextT = TypeVar("ContextT", bound=RowContext)
ContextIn = TypeVar("ContextIn", bound=RowContext, contravariant=True)


class DiffusionModel(Protocol[ContextT]):
    """A model family behind one set of verbs. Called from the engine's thread alone."""

    spec: ModelSpec
    """What the model can do."""
    awaited_bytes: Callable[[], int]
    """Of weights that may yet come to the device, beside those that lie there now."""

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

    def networks(self) -> Sequence[Network]:
        """All its networks, in the order in which a request calls them."""
        ...

    def compute_on(self, device: torch.device) -> None:
        """Compute there from now on; whoever asks sees that weights are there when needed."""
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
        guide: Guide | None = None,
    ) -> ContextT:
        """Prepare one row for evaluations at these noise levels. guide: one of its own."""
        ...

    def guide(self, pictures: Pictures) -> Guide | None:
        """What the model reads of pictures itself; None: nothing. Made once for many rows."""
        ...

    def evaluate(self, x: Tensor, sigmas: Sequence[float], contexts: Sequence[ContextT]) -> Tensor:
        """Velocity (R, N, C) float32 of tokens x (R, N, C), each row at its sigma and context.

        Rows must agree in image, text and reference tokens and in nothing else.
        """
        ...

    def decode(self, x: Tensor, width: int, height: int) -> Tensor:
        """Pictures uint8 (R, height, width, 3) on the CPU, of clean tokens x (R, N, C)."""
        ...

    def encode_picture(self, pixels: Tensor) -> Tensor:
        """Clean tokens (N, C) float32 of a picture uint8 (h, w, 3), whose sides are on the grid."""
        ...

    def encode_mask(self, mask: Tensor) -> Tensor:
        """Tokens (N, C) float32 of a mask uint8 (h, w): 1 where a pixel is redrawn, else 0."""
        ...

    def preview(self, x0: Tensor, width: int, height: int) -> Tensor:
        """A small picture uint8 (h, w, 3) of expected clean tokens (N, C)."""
        ...


Stage = Literal["encode", "context", "evaluate"]


@runtime_checkable
class Adaptable(Protocol):
    """A model that adapters were trained for. What they do to its layers is not its business."""

    @property
    def adaptable(self) -> Mapping[str, nn.Module]:
        """What adapters may act on; the names of layers begin with these."""
        ...

    @property
    def guide_stages(self) -> frozenset[Stage]:
        """Whose layers run to make a guide, too."""
        ...

    def read_adapter(
        self, tensors: Mapping[str, Tensor], about: Mapping[str, str]
    ) -> Mapping[str, Sequence[Learned]]:
        """What a file of tensors, with its metadata, has for each layer. From any thread.

        Raises LoadError naming what is not read or does not fit.
        """
        ...

    def stage_of(self, layer: str) -> Stage:
        """Which of the model's verbs runs a layer."""
        ...


@runtime_checkable
class Divisible(Protocol):
    """A model whose network is one transformer over tokens, that many ranks may run together."""

    transformer: nn.Module
    """Called with tokens x (R, N, C), text (R, L, D), modulation, rope, and by name `attend`."""

    forward: Callable[..., Tensor]
    """What `evaluate` calls in its place; the transformer itself, unless set otherwise."""

    @property
    def heads(self) -> int:
        """Of attention in a block, on all ranks together."""
        ...

    @property
    def head_bytes(self) -> int:
        """Of a head's keys and values of a token."""
        ...


@dataclass(frozen=True, slots=True)
class Told:
    """What a network over tokens is told of rows, besides the tokens themselves."""

    text: Tensor  # (R, L, D)
    rope: Tensor  # (R or 1, L + N, ·)
    modulation: Callable[[float], Tensor]  # (R, M, D) at a sigma


@runtime_checkable
class Walkable(Protocol[ContextIn]):
    """A model whose network can be walked in part, a stage after another."""

    @property
    def transformer(self) -> Staged:
        """The network."""
        ...

    def told(self, contexts: Sequence[ContextIn]) -> Told | None:
        """What the network is told of rows; None: of pictures besides, which none walks with."""
        ...


class PicturesInBands(Protocol):
    """What takes pictures whole or, with the same result in less memory, band by band."""

    whole_pixels: float
    """Of all pictures of a call together that are taken whole."""
    band_pixels: int
    """Of a band, about."""
    shared: Callable[[Tensor, int], Bands | None]
    """What of (R, C, rows, w), in units of so many rows, is this rank's; None: all."""


@runtime_checkable
class Banded(Protocol):
    """A model whose VAE can go through a picture in bands."""

    banded: PicturesInBands


@contextmanager
def taking(
    vae: PicturesInBands, *, whole_pixels: float, band_pixels: int | None = None
) -> Iterator[None]:
    """Take so many pixels whole inside, and bands of so many; None: of the usual ones."""
    usual = vae.whole_pixels, vae.band_pixels
    vae.whole_pixels = whole_pixels
    vae.band_pixels = usual[1] if band_pixels is None else band_pixels
    try:
        yield
    finally:
        vae.whole_pixels, vae.band_pixels = usual


def none_awaited() -> int:
    """Of a model whose weights are all where they compute."""
    return 0


def to_uint8(picture: Tensor) -> Tensor:
    """Round a picture from [-1, 1] to 0-255, clipping what lies outside."""
    return (picture.float() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)


def to_pixels(pictures: Tensor) -> Tensor:
    """Pictures (R, 3, h, w) from -1 to 1 as uint8 (R, h, w, 3) on the CPU."""
    return to_uint8(pictures).permute(0, 2, 3, 1).contiguous().cpu()
