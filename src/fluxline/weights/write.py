"""Write a checkpoint one tensor at a time, into files of about a GiB each."""

from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from fluxline.weights.packed import Packed, metadata

SHARD_BYTES = 2**30


class Writer:
    """Safetensors files in a folder. Nothing has its last name before `close`.

    stem: how the files are called. shard_bytes: a file is written once it holds so many.
    """

    def __init__(self, folder: Path, stem: str, *, shard_bytes: int = SHARD_BYTES) -> None:
        self._folder = folder
        self._stem = stem
        self._shard_bytes = shard_bytes
        self._tensors: dict[str, Tensor] = {}
        self._packed: dict[str, Packed] = {}
        self._written: list[Path] = []
        self.bytes = 0

    def add(self, name: str, tensor: Tensor | Packed) -> None:
        """Write a tensor, or the fields of a packed one."""
        if isinstance(tensor, Packed):
            self._packed[name] = tensor
            fields = {f"{name}.{field}": value for field, value in tensor.fields.items()}
        else:
            fields = {name: tensor}
        self._tensors |= {name: field.cpu().contiguous() for name, field in fields.items()}
        self.bytes += sum(field.nbytes for field in fields.values())
        if sum(tensor.nbytes for tensor in self._tensors.values()) >= self._shard_bytes:
            self._flush()

    def close(self) -> list[Path]:
        """Write what is left, and give the files their names."""
        if self._tensors:
            self._flush()
        count = len(self._written)
        names = [f"{self._stem}-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
        if count == 1:
            names = [f"{self._stem}.safetensors"]
        pairs = zip(self._written, names, strict=True)
        return [file.rename(self._folder / name) for file, name in pairs]

    def _flush(self) -> None:
        file = self._folder / f"{len(self._written)}.part"
        save_file(self._tensors, file, {"format": "pt", **metadata(self._packed)})
        self._written.append(file)
        self._tensors, self._packed = {}, {}
