"""A linear layer whose weight is held in fewer bits, and the kinds there are.

It takes its weight row by row while a checkpoint is read, so that nothing of full size is ever
allocated for it.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fluxline.errors import LoadError
from fluxline.linear.eight_bit import Fp8, Int8, Int8Dynamic
from fluxline.linear.four_bit import Hqq4, Nf4, Nf4Double
from fluxline.linear.fp4 import Fp4, leading
from fluxline.linear.gguf import GGUF_KINDS
from fluxline.linear.kind import Fields, Kind

OWN_KINDS: dict[str, Kind] = {
    kind.name: kind for kind in (Int8(), Int8Dynamic(), Fp8(), Nf4(), Nf4Double(), Hqq4(), Fp4())
}
KINDS: dict[str, Kind] = {**OWN_KINDS, **GGUF_KINDS}


class QuantizedLinear(nn.Module):
    """Stands in for nn.Linear. Its buffers are the fields of its kind; its bias stays a parameter.

    like: the layer it replaces, on any device, the meta device too; its bias is taken over.
    starts: the rows at which the tensors begin that the weight will be made of. Where the kind has
    a rank, each of them has its own low-rank part: `up` (out, rank), `down` (parts, rank, in).
    """

    weight = None  # T5 looks whether its layers have one

    def __init__(self, kind: Kind, like: nn.Linear, starts: Sequence[int] = (0,)) -> None:
        super().__init__()
        self.in_features, self.out_features = like.in_features, like.out_features
        self.kind = kind
        self._starts = tuple(starts)
        with like.weight.device:
            fields = kind.empty(self.out_features, self.in_features)
            if kind.rank:
                fields["up"] = torch.empty(self.out_features, kind.rank, dtype=torch.bfloat16)
                parts = (len(starts), kind.rank, self.in_features)
                fields["down"] = torch.empty(parts, dtype=torch.bfloat16)
        self._fields = tuple(fields)
        for name, field in fields.items():
            self.register_buffer(name, field)
        self.bias = like.bias

    @property
    def held_as(self) -> str:
        """The kind's name."""
        return self.kind.name

    @property
    def weight_shape(self) -> torch.Size:
        """Of the weight that it stands for."""
        return torch.Size((self.out_features, self.in_features))

    @torch.no_grad()
    def take_rows(self, row: int, part: Tensor) -> None:
        """Quantize a part (rows, in) of the weight that begins at that row."""
        weight = part.to(next(self.buffers()).device, torch.float32)
        self.take_packed(row, pack(self.kind, weight))

    @torch.no_grad()
    def take_packed(self, row: int, fields: Mapping[str, Tensor]) -> None:
        """Take a part of the weight that is of the kind already."""
        for name, field in fields.items():
            held = self.get_buffer(name)
            if name == "down":
                held[self._starts.index(row)].copy_(field)
            else:
                held[row : row + len(field)].copy_(field)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        if not x.numel():  # no text, for one: not all kernels can multiply nothing
            return x.new_empty(*x.shape[:-1], self.out_features)
        fields = {name: self.get_buffer(name) for name in self._fields}
        y = self.kind.multiply(x, fields)
        if self.kind.rank:
            y = y + self._low_rank(x)
        return y if self.bias is None else y + self.bias

    def dequantized(self) -> Tensor:
        """The weight (out, in) float32 that it stands for."""
        fields = {name: self.get_buffer(name) for name in self._fields}
        weight = self.kind.dequantize(fields, self.in_features)
        if self.kind.rank:
            eye = torch.eye(self.in_features, device=weight.device)
            weight = weight + self._low_rank(eye).T
        return weight

    def extra_repr(self) -> str:
        """What nn.Linear says, and the kind."""
        return f"{self.in_features}, {self.out_features}, {self.kind.name}"

    def _low_rank(self, x: Tensor) -> Tensor:
        """x through down and up, each part of the rows through its own."""
        down, up = self.get_buffer("down").to(x.dtype), self.get_buffer("up").to(x.dtype)
        ends = (*self._starts[1:], self.out_features)
        parts = zip(down, self._starts, ends, strict=True)
        return torch.cat([F.linear(F.linear(x, d), up[a:b]) for d, a, b in parts], dim=-1)


def pack(kind: Kind, weight: Tensor) -> Fields:
    """Hold a weight (rows, columns) float32, its low-rank part beside where the kind has one."""
    if not kind.rank:
        return kind.quantize(weight)
    up, down = leading(weight, kind.rank)
    rest = weight - up.float() @ down.float()  # of the factors as they are kept
    return {**kind.quantize(rest), "up": up, "down": down}


def kind_of(name: str) -> Kind:
    """The kind of that name. Raises LoadError if there is none."""
    if name not in KINDS:
        raise LoadError(f"weights held as {name} cannot be read; {', '.join(KINDS)} can")
    return KINDS[name]


def unpack(name: str, fields: Mapping[str, Tensor], columns: int) -> Tensor:
    """The weight (rows, columns) float32 that fields of the kind of that name stand for.

    Raises LoadError if there is no such kind.
    """
    kind = kind_of(name)
    weight = kind.dequantize(dict(fields), columns)
    if kind.rank:
        weight = weight + fields["up"].float() @ fields["down"].float()
    return weight
