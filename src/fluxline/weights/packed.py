"""Weights that lie in a file in fewer bits than they were trained in, and how files say so.

Our own files hold each of them as several tensors, `NAME.FIELD`, and their headers' metadata say
of what kind it is. Other people's hold float8 tensors, perhaps with a scale beside.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

METADATA = "fluxline"
FLOAT8 = "F8_E4M3"  # as safetensors calls it
SCALES = ("scale_weight", "weight_scale")  # of a float8 tensor, as ComfyUI and as others call it
UNREAD = ("scale_input", "input_scale")  # of activations: we scale them as they come
MARK = "scaled_fp8"

Unpack = Callable[[str, Mapping[str, Tensor], int], Tensor]
"""(kind, fields, columns) to the weight (rows, columns) that they stand for."""


@dataclass(frozen=True, slots=True)
class Packed:
    """A weight as it lies in a file: the fields of its kind."""

    kind: str
    shape: tuple[int, ...]  # of the weight that it stands for
    fields: Mapping[str, Tensor]
    unpack: Unpack

    def dense(self) -> Tensor:
        """The weight (rows, columns) float32."""
        return self.unpack(self.kind, self.fields, self.shape[1])


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of a checkpoint. kind: None for one that is as it stands."""

    shape: tuple[int, ...]
    kind: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict)  # of the kind: name in the file

    def read(self, handle: Any, name: str, unpack: Unpack) -> Tensor | Packed:
        """Fetch it from its safetensors file."""
        if self.kind is None:
            found: Tensor = handle.get_tensor(name)
            return found
        fields = {key: handle.get_tensor(where) for key, where in self.fields.items()}
        if fields["codes"].dtype == torch.float8_e4m3fn:
            scale = fields.get("scale", torch.ones(1)).float().reshape(-1)
            fields["scale"] = scale.expand(self.shape[0])
        return Packed(self.kind, self.shape, fields, unpack)


def entries(handle: Any) -> dict[str, Entry]:
    """What a safetensors file holds. Raises ValueError if its metadata say what is not so."""
    parts = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118 - not a dict
    shapes = {name: tuple(part.get_shape()) for name, part in parts.items()}
    found = _told(handle.metadata() or {}, shapes)
    taken = {where for entry in found.values() for where in entry.fields.values()} | {MARK}
    for name, part in parts.items():
        if part.get_dtype() == FLOAT8 and len(shapes[name]) == 2 and name not in taken:
            stem = name.removesuffix("weight")
            scale = next((stem + s for s in SCALES if stem + s in shapes), None)
            fields = {"codes": name} if scale is None else {"codes": name, "scale": scale}
            found[name] = Entry(shapes[name], "fp8", fields)
            taken |= {*fields.values(), *(stem + s for s in UNREAD)}
    dense = {name: Entry(shape) for name, shape in shapes.items() if name not in taken}
    return found | dense


def metadata(held: Mapping[str, Packed]) -> dict[str, str]:
    """What a header says of the weights it holds by these names."""
    said = {name: [one.kind, list(one.shape), list(one.fields)] for name, one in held.items()}
    return {METADATA: json.dumps(said, separators=(",", ":"))}


def _told(said: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Entry]:
    found = {}
    try:
        for name, (kind, shape, fields) in json.loads(said.get(METADATA, "{}")).items():
            rows, columns = map(int, shape)
            where = {str(key): f"{name}.{key}" for key in fields}
            found[name] = Entry((rows, columns), str(kind), where)
            if absent := [tensor for tensor in where.values() if tensor not in shapes]:
                raise ValueError(f"no tensor {absent[0]}")
    except (TypeError, AttributeError) as exc:
        raise ValueError(f"metadata {METADATA!r} cannot be understood") from exc
    return found
