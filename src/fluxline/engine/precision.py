"""How a model's weights are held: as they compute, in fewer bits, or as their file has them.

Between a family, which says which layers may, and `linear`, which knows how.
"""

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import get_args

import torch
from torch import nn

from fluxline.errors import ConfigError
from fluxline.linear.kind import Kind
from fluxline.linear.quantized import KINDS, OWN_KINDS, QuantizedLinear, kind_of
from fluxline.models.base import Held, Part
from fluxline.request import PrecisionName

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True, slots=True)
class Precision:
    """What was asked: "auto" (what is fast, or as the files are), a dtype, or a kind.

    computes_on: where, if not where weights lie. Raises ConfigError if there is no such.
    """

    asked: str = "auto"
    computes_on: torch.device | None = None

    def __post_init__(self) -> None:
        if self.asked not in (known := get_args(PrecisionName)):
            message = f"precision must be one of {', '.join(known)}; got {self.asked!r}"
            raise ConfigError(message)

    @property
    def is_kind(self) -> bool:
        """Whether a kind was asked for."""
        return self.asked in OWN_KINDS

    @property
    def is_dtype(self) -> bool:
        """Whether a dtype was asked for: what is quantized is unpacked."""
        return self.asked in DTYPES

    def dtype(self, fast: torch.dtype) -> torch.dtype:
        """What to compute in, `fast` being what is fast here."""
        return DTYPES.get(self.asked, fast)

    def changes(self, part: Part) -> bool:
        """Whether any layer of the part will be held otherwise than as it computes."""
        return self.is_kind or bool(part.checkpoint.kinds)

    def place(self, model: nn.Module, part: Part, device: torch.device) -> Held:
        """Put quantized layers in place of a model's linear ones, before it is filled.

        Raises ConfigError where another kind was asked for than the checkpoint has, LoadError where
        it has one that is not known.
        """
        where = self.computes_on or device
        held: dict[str, int] = {}
        emulated: dict[str, None] = {}  # in their order
        for name, layer in layers_of(part).items():
            if (kind := self._kind(layer, part)) is None:
                continue
            stand_in = QuantizedLinear(kind, _linear(model, name), sorted(layer.starts))
            model.set_submodule(name, stand_in)
            held[kind.name] = held.get(kind.name, 0) + sum(b.nbytes for b in stand_in.buffers())
            if not kind.is_native(where, *stand_in.weight_shape):
                emulated[kind.name] = None
        return Held(
            precision="+".join(sorted(held, key=lambda kind: -held[kind])),
            notes=tuple(
                f"{part.name} is held as {kind}, but multiplied in plain floats: "
                f"{where.type} has no fast product of {kind}"
                for kind in emulated
            ),
        )

    def kind_in(self, part: Part) -> str:
        """The kind asked for, or the one that suits the part better."""
        return part.instead.get(self.asked, self.asked)

    def _kind(self, layer: "Layer", part: Part) -> Kind | None:
        """How a layer will be held; None: as it computes."""
        wanted = self.kind_in(part) if self.is_kind else None
        stored = layer.kinds - {None}
        if wanted is not None and stored - {wanted}:
            message = (
                f"{part.name} is quantized already, as {'+'.join(sorted(map(str, stored)))}: "
                f"precision can be auto, bf16 or fp32; got {self.asked}"
            )
            raise ConfigError(message)
        if wanted is not None:
            return KINDS[wanted]
        if self.is_dtype or len(layer.kinds) > 1 or not stored:
            return None
        return kind_of(str(*stored))


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer that may be held in fewer bits: what its weight is made of.

    starts: the rows at which the checkpoint's tensors begin. kinds: theirs; None: not quantized.
    """

    starts: list[int] = field(default_factory=list)
    kinds: set[str | None] = field(default_factory=set)


def layers_of(part: Part) -> dict[str, Layer]:
    """The layers of a part that may be held in fewer bits, by name."""
    found: dict[str, Layer] = {}
    for name, shape in part.checkpoint.shapes.items():
        for layer, row in layers_filled_by(name, shape, part):
            at = found.setdefault(layer, Layer())
            at.starts.append(row)
            at.kinds.add(part.checkpoint.kinds.get(name))
    return found


def layers_filled_by(name: str, shape: tuple[int, ...], part: Part) -> list[tuple[str, int]]:
    """(layer, first row) of the weights that a tensor fills and that may be held in fewer bits."""
    if len(shape) != 2:
        return []
    slots = part.layout(name, torch.empty(shape, device="meta")) or ()
    layers = [(target.removesuffix(".weight"), row) for target, row, _ in slots]
    return [
        (layer, row)
        for layer, row in layers
        if any(fnmatchcase(layer, pattern) for pattern in part.linears)
    ]


def _linear(model: nn.Module, name: str) -> nn.Linear:
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    return layer
