"""Muon: momentum whose update is made orthogonal, for matrices; everything else is AdamW's.

Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks". It is known
to need fewer updates than AdamW, and updates are what a small machine is short of. The embedded
model took it up after 1,500 steps of AdamW; the two were not compared side by side here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MOMENTUM = 0.95
DECAY = 0.01
ROUNDS = 4  # of Newton-Schulz; the singular values end near 1, which is all that is needed
A, B, C = 3.4445, -4.7750, 2.0315  # the quintic's coefficients, from the source


class Muon:
    """Updates matrices (rows, columns) from their `.grad`, which it takes."""

    def __init__(self, matrices: Sequence[Tensor]) -> None:
        self.matrices = list(matrices)
        self.momenta = [torch.zeros_like(m) for m in self.matrices]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Move every matrix by `rate` along its orthogonalised momentum."""
        for matrix, momentum in zip(self.matrices, self.momenta, strict=True):
            momentum.mul_(MOMENTUM).add_(matrix.grad)
            update = orthogonalised(matrix.grad.add(momentum, alpha=MOMENTUM))
            rows, columns = matrix.shape
            scale = max(1.0, rows / columns) ** 0.5
            matrix.mul_(1 - rate * DECAY).add_(update, alpha=-rate * scale)
            matrix.grad = None

    def state(self) -> list[Tensor]:
        """What a checkpoint must keep."""
        return self.momenta

    @torch.no_grad()
    def load(self, momenta: Sequence[Tensor]) -> None:
        """Take up what `state` gave."""
        for mine, theirs in zip(self.momenta, momenta, strict=True):
            mine.copy_(theirs)


def orthogonalised(matrix: Tensor) -> Tensor:
    """The matrix with all singular values pushed towards 1 (Newton-Schulz).

    Every round multiplies by a polynomial in the Gram matrix, so that the rounds are done on the
    small square alone and the matrix is multiplied once.
    """
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix
    x = x / (x.norm() + 1e-7)
    gram = x @ x.T
    product = None
    for round_ in range(ROUNDS):
        factor = torch.addmm(gram, gram, gram, beta=B, alpha=C)
        factor.diagonal().add_(A)
        product = factor if product is None else factor @ product
        if round_ < ROUNDS - 1:
            gram = factor @ gram @ factor
    x = product @ x
    return x.T if is_tall else x
