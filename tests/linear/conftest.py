"""Weights as a trained network has them: about normal, with some rows and values far out."""

import pytest
import torch


def weight_of(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    weight = 0.02 * torch.randn(rows, columns, generator=generator)
    weight[::7] *= 3
    weight[1, 5] = 0.4
    return weight


@pytest.fixture
def weight():
    return weight_of(96, 256)
