"""Load a checkpoint one tensor at a time: read, rename, transform, assign, with a strict account.

Knows safetensors and nothing of any model: a *layout* says where each tensor belongs, and what is
there says how it is kept. At most one tensor of the checkpoint is in memory beside the model.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fluxline.errors import CheckpointMismatch, LoadError
from fluxline.weights.fingerprint import fingerprint
from fluxline.weights.packed import Entry, Packed, Unpack, entries

Slot = tuple[str, int, Tensor]
"""(parameter, first row, what to write there)."""

Layout = Callable[[str, Tensor], Sequence[Slot] | None]
"""(checkpoint name, tensor) to the slots it fills. None: the name is unknown."""


@runtime_checkable
class TakesRows(Protocol):
    """A module that has no weight but keeps the rows it is given in its own way."""

    @property
    def held_as(self) -> str:
        """The kind of packed weight that it keeps as it is."""
        ...

    @property
    def weight_shape(self) -> torch.Size:
        """(rows, columns)."""
        ...

    def take_rows(self, row: int, part: Tensor) -> None:
        """Keep a part (rows, columns) that begins at that row."""
        ...

    def take_packed(self, row: int, fields: Mapping[str, Tensor]) -> None:
        """Keep a part that is `held_as` it is kept."""
        ...


class Checkpoint:
    """Some safetensors files that together are one checkpoint. `source` names it in messages.

    unpack: reads weights that are packed, if there are any. Raises LoadError if a file cannot be
    read.
    """

    def __init__(self, files: Sequence[Path], *, source: str, unpack: Unpack | None = None) -> None:
        self._files = files
        self._source = source
        self._unpack = unpack or _refuse
        self._entries: dict[Path, dict[str, Entry]] = {}
        for file, handle in self._handles():
            try:
                self._entries[file] = entries(handle)
            except ValueError as exc:
                raise LoadError(f"cannot read {file.name} of {source}: {exc}") from exc
        together = [pair for held in self._entries.values() for pair in held.items()]
        self.shapes = {name: entry.shape for name, entry in together}
        self.kinds = {name: entry.kind for name, entry in together if entry.kind}

    def tensors(self) -> Iterator[tuple[str, Tensor | Packed]]:
        """Yield every (name, tensor), one in memory at a time."""
        for file, handle in self._handles():
            for name, entry in self._entries[file].items():
                yield name, entry.read(handle, name, self._unpack)

    def fingerprint(self) -> str:
        """Name what the tensors say in 32 hex digits. Raises LoadError."""
        try:
            return fingerprint(self._files)
        except OSError as exc:
            raise LoadError(f"cannot read {self._source}: {exc}") from exc

    def fill(self, model: nn.Module, layout: Layout) -> None:
        """Assign every tensor to its place in the model. Raises CheckpointMismatch."""
        assign(model, self.tensors(), layout, source=self._source)

    def _handles(self) -> Iterator[tuple[Path, Any]]:  # Any: safetensors is a binary without types
        for file in self._files:
            try:
                with safe_open(file, framework="pt") as handle:
                    yield file, handle
            except (SafetensorError, OSError) as exc:
                raise LoadError(f"cannot read {file.name} of {self._source}: {exc}") from exc


@torch.no_grad()
def assign(
    model: nn.Module,
    tensors: Iterable[tuple[str, Tensor | Packed]],
    layout: Layout,
    *,
    source: str,
) -> None:
    """Fill every parameter of `model` from `tensors`, each in the parameter's dtype and device.

    What stands in for a parameter takes its rows. Raises CheckpointMismatch if any tensor is left
    over, any row of any parameter is not filled exactly once, or a shape differs. `source` names
    the checkpoint in the message.
    """
    places = _places(model)
    missing = {name: _Rows(place.shape[0]) for name, place in places.items()}
    unexpected: list[str] = []
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    for name, tensor in tensors:
        placed = _placed(name, tensor, layout, places)
        if placed is None or any(parameter not in places for parameter, _, _ in placed):
            unexpected.append(name)
            continue
        for parameter, row, part in placed:
            rows, *rest = places[parameter].shape
            room = (min(part.shape[0], rows - row), *rest)
            if tuple(part.shape) != room:
                shapes[name] = (tuple(part.shape), room)
            elif not missing[parameter].take(row, part.shape[0]):
                unexpected.append(name)
            else:
                places[parameter].put(row, part)
    absent = [name for name, rows in missing.items() if rows.left]
    if absent or unexpected or shapes:
        raise CheckpointMismatch(source, missing=absent, unexpected=unexpected, shapes=shapes)


def _placed(
    name: str, tensor: Tensor | Packed, layout: Layout, places: Mapping[str, "_Place"]
) -> Sequence[tuple[str, int, Tensor | Packed]] | None:
    """Where a tensor belongs: packed ones as they are, if whole where their kind is kept."""
    if isinstance(tensor, Tensor):
        return layout(name, tensor)
    whole = layout(name, torch.empty(tensor.shape, device="meta"))
    if whole is None or (len(whole) == 1 and places[whole[0][0]].keeps == tensor.kind):
        return whole and [(whole[0][0], whole[0][1], tensor)]
    return layout(name, tensor.dense())


class _Place:
    """A parameter to be filled, row by row."""

    keeps: str | None = None

    def __init__(self, parameter: Tensor) -> None:
        self._parameter = parameter
        self.shape = parameter.shape

    def put(self, row: int, part: Tensor | Packed) -> None:
        assert isinstance(part, Tensor)
        self._parameter[row : row + part.shape[0]].copy_(part)


class _Held(_Place):
    """What stands in for a parameter."""

    def __init__(self, module: TakesRows) -> None:
        self._module = module
        self.shape, self.keeps = module.weight_shape, module.held_as

    def put(self, row: int, part: Tensor | Packed) -> None:
        if isinstance(part, Packed):
            self._module.take_packed(row, part.fields)
        else:
            self._module.take_rows(row, part)


def _places(model: nn.Module) -> dict[str, _Place]:
    parameters = {name: _Place(parameter) for name, parameter in model.named_parameters()}
    held = {
        f"{name}.weight": _Held(module)
        for name, module in model.named_modules()
        if isinstance(module, TakesRows)
    }
    return parameters | held


def _refuse(kind: str, fields: Mapping[str, Tensor], columns: int) -> Tensor:
    raise LoadError(f"the checkpoint holds weights as {kind}, which is not read here")


class _Rows:
    """Which rows of one parameter are still to be filled."""

    def __init__(self, count: int) -> None:
        self.left = count
        self._taken: list[tuple[int, int]] = []

    def take(self, row: int, length: int) -> bool:
        """Mark rows as filled. False if one of them was already."""
        if any(row < end and start < row + length for start, end in self._taken):
            return False
        self._taken.append((row, row + length))
        self.left -= length
        return True
