"""What a rank holds of a network's weights, where several hold them together: a share of every
layer (`tensor`), or some of the blocks (`stages`).

Between a family, which says where its layers may be cut, and `parallel`, which knows how.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import cast

from torch import Tensor, nn

from fluxline.degrees import part_of
from fluxline.engine.precision import Precision
from fluxline.errors import ConfigError
from fluxline.models.base import Part, Seams, Side, SplitsHeads
from fluxline.ops.adapter import Learned
from fluxline.ops.bound import Staged
from fluxline.parallel.group import Group, shares
from fluxline.parallel.tensor import GatheredRows, Kept, OwnColumns, OwnRows, SharedLinear

EVEN = 16  # an MLP's inner width is dealt out by so many: products of other widths are slow
BASE = "base"  # what a SharedLinear calls the share that it keeps


@dataclass(frozen=True, slots=True)
class Share:
    """Leaves this rank's share of a network, which all ranks of a group hold together.

    precision: as its layers will be held.
    """

    group: Group
    precision: Precision

    def __call__(self, model: nn.Module, part: Part) -> Part:
        """Put shares in place of a model's layers before it is filled, and give the part that fills
        them. Raises ConfigError where it cannot be cut for so many ranks."""
        seams = self._checked(part)
        dealt = self._dealt(seams)
        layers = {
            name: shared
            for name, layer in model.named_modules()
            if isinstance(layer, nn.Linear)
            and (shared := self._shared(name, layer, seams, dealt)) is not None
        }
        for name, shared in layers.items():
            model.set_submodule(name, shared)
        for module in model.modules():
            if isinstance(module, SplitsHeads):
                module.heads = shares(seams.heads, self.group.size)[self.group.rank]

        def place(name: str, tensor: Tensor) -> list[tuple[str, int, Tensor]] | None:
            slots = part.layout(name, tensor)
            return slots if slots is None else [*_cut(slots, layers)]

        inside = tuple(f"{pattern}.{BASE}" for pattern in part.linears)
        return replace(part, layout=place, linears=(*part.linears, *inside))

    def _checked(self, part: Part) -> Seams:
        """Where the part may be cut, if it may for so many ranks and as it lies in its files."""
        seams, ranks = part.seams, self.group.size
        assert seams is not None  # the family says so of the networks that it has shared
        if ranks > seams.heads:
            message = f"tensor={ranks} needs a head of attention for each rank; {part.name} has"
            raise ConfigError(f"{message} {seams.heads}")
        if part.checkpoint.kinds and not self.precision.is_dtype:
            kinds = "+".join(sorted(set(part.checkpoint.kinds.values())))
            message = f"{part.name} is quantized already, as {kinds}, and not cut as it is for"
            raise ConfigError(f"{message} tensor={ranks}: use precision bf16 or fp32")
        return seams

    def _dealt(self, seams: Seams) -> dict[Side, tuple[int, ...]]:
        """How much of what can be cut every rank has; who has a head more has less of the MLPs."""
        ranks = self.group.size
        even = math.gcd(seams.inner, EVEN)
        return {
            "heads": tuple(heads * seams.head_dim for heads in shares(seams.heads, ranks)),
            "inner": tuple(even * many for many in shares(seams.inner // even, ranks)[::-1]),
        }

    def _shared(
        self, name: str, layer: nn.Linear, seams: Seams, dealt: Mapping[Side, Sequence[int]]
    ) -> SharedLinear | None:
        """A layer's share; None: all ranks have it whole."""
        if any(fnmatchcase(name, pattern) for pattern in seams.gathered):
            return GatheredRows(layer, shares(layer.out_features, self.group.size), self.group)
        if (sides := _sides(name, seams.rows)) is not None:
            return OwnRows(layer, Kept.of([dealt[side] for side in sides], self.group.rank))
        if (sides := _sides(name, seams.columns)) is not None:
            kept = Kept.of([dealt[side] for side in sides], self.group.rank)
            return OwnColumns(layer, kept, self.group)
        return None


@dataclass(frozen=True, slots=True)
class OwnBlocks:
    """Leaves this rank's blocks of a network, its share of what is run once a request, and all of
    what is neither."""

    group: Group

    def __call__(self, model: nn.Module, part: Part) -> Part:
        """Put nothing in place of others' blocks before a model is filled, and give the part that
        fills the rest. Raises ConfigError where there are fewer blocks than ranks."""
        blocks = cast(Staged, model).blocks
        ranks = self.group.size
        if ranks > len(blocks):
            message = f"stages={ranks} needs a block for each rank; {part.name} has {len(blocks)}"
            raise ConfigError(message)
        others = {*blocks} - {*blocks[part_of(len(blocks), ranks, self.group.rank)]}
        absent = tuple(f"{name}." for name, module in model.named_modules() if module in others)
        for name in absent:
            model.set_submodule(name[:-1], _hollow(model.get_submodule(name[:-1])))
        assert part.seams is not None  # the family says so of the networks that it has shared
        layers: dict[str, SharedLinear] = {
            name: GatheredRows(layer, shares(layer.out_features, ranks), self.group)
            for name, layer in model.named_modules()
            if isinstance(layer, nn.Linear)
            and any(fnmatchcase(name, pattern) for pattern in part.seams.gathered)
        }
        for name, shared in layers.items():
            model.set_submodule(name, shared)

        def place(name: str, tensor: Tensor) -> list[tuple[str, int, Tensor]] | None:
            slots = part.layout(name, tensor)
            if slots is None:
                return None
            return _cut([slot for slot in slots if not slot[0].startswith(absent)], layers)

        return replace(part, layout=place)


class Absent(nn.Module):
    """A linear layer that another rank has: where it would be, and its widths."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features


def _hollow(block: nn.Module) -> nn.Module:
    """A block without its weights."""
    hollow = nn.Module()
    for name, layer in block.named_modules():
        if isinstance(layer, nn.Linear):
            *path, last = name.split(".")
            inside = hollow
            for step in path:
                if step not in dict(inside.named_children()):
                    inside.add_module(step, nn.Module())
                inside = inside.get_submodule(step)
            inside.add_module(last, Absent(layer))
    return hollow


def shared_adapter(
    networks: Mapping[str, nn.Module], parts: Mapping[str, Sequence[Learned]]
) -> dict[str, Sequence[Learned]]:
    """What an adapter has for the layers as they are here: of shared ones, for this rank's share;
    of those in others' blocks, nothing.

    networks: by the names that layers' names begin with.
    """
    found: dict[str, Sequence[Learned]] = {}
    for name, own in parts.items():
        network, _, path = name.partition(".")
        layer = networks[network].get_submodule(path)
        if isinstance(layer, SharedLinear):
            found[f"{name}.{BASE}"] = layer.beside(own)
        elif not isinstance(layer, Absent):
            found[name] = own
    return {name: own for name, own in found.items() if own}


def _sides(name: str, table: Mapping[str, tuple[Side, ...]]) -> tuple[Side, ...] | None:
    return next((sides for pattern, sides in table.items() if fnmatchcase(name, pattern)), None)


def _cut(
    slots: Sequence[tuple[str, int, Tensor]], layers: Mapping[str, SharedLinear]
) -> list[tuple[str, int, Tensor]]:
    """What of slots belongs to this rank."""
    cut = []
    for target, row, part in slots:
        layer, _, field = target.rpartition(".")
        if layer in layers:
            inside, row, part = layers[layer].slot(field, row, part)
            target = f"{layer}.{inside}"
        if len(part):
            cut.append((target, row, part))
    return cut
