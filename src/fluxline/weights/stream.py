"""Load a checkpoint one tensor at a time: read, rename, transform, assign, with a strict account.

Knows safetensors and nothing of any model: a *layout* says where each tensor belongs. At most one
tensor of the checkpoint is in memory beside the model.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fluxline.errors import CheckpointMismatch, LoadError
from fluxline.weights.fingerprint import fingerprint

Slot = tuple[str, int, Tensor]
"""(parameter, first row, what to write there)."""

Layout = Callable[[str, Tensor], Sequence[Slot] | None]
"""(checkpoint name, tensor) to the slots it fills. None: the name is unknown."""


class Checkpoint:
    """Some safetensors files that together are one checkpoint. `source` names it in messages.

    Raises LoadError if a file cannot be read.
    """

    def __init__(self, files: Sequence[Path], *, source: str) -> None:
        self._files = files
        self._source = source
        self.shapes: dict[str, tuple[int, ...]] = {}
        for handle in self._handles():
            for name in handle.keys():  # noqa: SIM118 - not a dict
                self.shapes[name] = tuple(handle.get_slice(name).get_shape())

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every (name, tensor), one in memory at a time."""
        for handle in self._handles():
            for name in handle.keys():  # noqa: SIM118 - not a dict
                yield name, handle.get_tensor(name)

    def fingerprint(self) -> str:
        """Name what the tensors say in 32 hex digits. Raises LoadError."""
        try:
            return fingerprint(self._files)
        except OSError as exc:
            raise LoadError(f"cannot read {self._source}: {exc}") from exc

    def fill(self, model: nn.Module, layout: Layout) -> None:
        """Assign every tensor to its place in the model. Raises CheckpointMismatch."""
        assign(model, self.tensors(), layout, source=self._source)

    def _handles(self) -> Iterator[Any]:  # Any: safetensors is a binary without types
        for file in self._files:
            try:
                with safe_open(file, framework="pt") as handle:
                    yield handle
            except (SafetensorError, OSError) as exc:
                raise LoadError(f"cannot read {file.name} of {self._source}: {exc}") from exc


@torch.no_grad()
def assign(
    model: nn.Module, tensors: Iterable[tuple[str, Tensor]], layout: Layout, *, source: str
) -> None:
    """Fill every parameter of `model` from `tensors`, each in the parameter's dtype and device.

    Raises CheckpointMismatch if any tensor is left over, any row of any parameter is not filled
    exactly once, or a shape differs. `source` names the checkpoint in the message.
    """
    parameters = dict(model.named_parameters())
    missing = {name: _Rows(p.shape[0]) for name, p in parameters.items()}
    unexpected: list[str] = []
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    for name, tensor in tensors:
        placed = layout(name, tensor)
        if placed is None or any(parameter not in parameters for parameter, _, _ in placed):
            unexpected.append(name)
            continue
        for parameter, row, part in placed:
            target = parameters[parameter][row : row + part.shape[0]]
            if target.shape != part.shape:
                shapes[name] = (tuple(part.shape), tuple(target.shape))
            elif not missing[parameter].take(row, part.shape[0]):
                unexpected.append(name)
            else:
                target.copy_(part)
    absent = [name for name, rows in missing.items() if rows.left]
    if absent or unexpected or shapes:
        raise CheckpointMismatch(source, missing=absent, unexpected=unexpected, shapes=shapes)


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
