"""A linear layer whose weight stays in the machine's memory: for what a request needs only once.

27 % of FLUX.1 are modulation layers, which see one vector a request. Their rows come to the device
some at a time, are multiplied and let go.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHUNK_BYTES = 256 * 2**20


class Distant(nn.Module):
    """Computes what `base` computes, on the device of what it reads.

    chunk_bytes: of weight, on that device at a time.
    """

    def __init__(self, base: nn.Linear, *, chunk_bytes: int = CHUNK_BYTES) -> None:
        super().__init__()
        self.in_features, self.out_features = base.in_features, base.out_features
        self.base = base
        row_bytes = base.in_features * base.weight.element_size()
        self._rows = max(1, chunk_bytes // row_bytes)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) to (…, out)."""
        bias = self.base.bias
        weights = torch.split(self.base.weight, self._rows)
        biases = [None] * len(weights) if bias is None else torch.split(bias, self._rows)
        parts = [
            F.linear(x, _at(some, x.device), None if beside is None else _at(beside, x.device))
            for some, beside in zip(weights, biases, strict=True)
        ]
        return torch.cat(parts, dim=-1)


def _at(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device, non_blocking=True)
