"""Checkpoints in GGUF files: blocks of quantized weights, kept as they lie.

The file is read by the `gguf` package; what its blocks mean is told by whoever opens it.
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader
from torch import Tensor, nn

from fluxline.errors import LoadError
from fluxline.weights.fingerprint import fingerprint_of
from fluxline.weights.packed import Packed, Unpack
from fluxline.weights.stream import Layout, assign

DENSE = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class GgufCheckpoint:
    """One GGUF file. `source` names it in messages. Raises LoadError if it cannot be read."""

    def __init__(self, file: Path, *, source: str, unpack: Unpack) -> None:
        self._file = file
        self._source = source
        self._unpack = unpack
        self.shapes = {tensor.name: _shape(tensor) for tensor in self._tensors}
        self.kinds = {
            tensor.name: tensor.tensor_type.name
            for tensor in self._tensors
            if tensor.tensor_type.name not in DENSE
        }

    def tensors(self) -> Iterator[tuple[str, Tensor | Packed]]:
        """Yield every (name, tensor), one in memory at a time."""
        for tensor in self._tensors:
            yield tensor.name, self._read(tensor)

    def fingerprint(self) -> str:
        """Name what the tensors say in 32 hex digits. Raises LoadError."""
        spans = [(int(t.data_offset), int(t.data_offset + t.n_bytes)) for t in self._tensors]
        try:
            return fingerprint_of(self._file, min(begin for begin, _ in spans), spans)
        except OSError as exc:
            raise LoadError(f"cannot read {self._source}: {exc}") from exc

    def fill(self, model: nn.Module, layout: Layout) -> None:
        """Assign every tensor to its place in the model. Raises CheckpointMismatch."""
        assign(model, self.tensors(), layout, source=self._source)

    @cached_property
    def _tensors(self) -> list[Any]:  # Any: the package's tuple of numpy arrays
        try:
            tensors: list[Any] = GGUFReader(self._file).tensors
        except (ValueError, IndexError, KeyError, OverflowError, OSError) as exc:
            raise LoadError(f"cannot read {self._source} as GGUF: {exc}") from exc
        if not tensors:
            raise LoadError(f"{self._source} holds no tensors")
        return tensors

    def _read(self, tensor: Any) -> Tensor | Packed:
        data = torch.from_numpy(np.array(tensor.data))  # a copy: the file's pages are read-only
        shape, kind = _shape(tensor), tensor.tensor_type.name
        if kind in DENSE:
            return data.view(DENSE[kind]).view(shape)
        rows = data.view(torch.uint8).reshape(shape[0], -1)
        return Packed(kind, shape, {"blocks": rows}, self._unpack)


def _shape(tensor: Any) -> tuple[int, ...]:
    """As torch counts: GGUF names the innermost axis first."""
    return tuple(int(side) for side in reversed(tensor.shape))
