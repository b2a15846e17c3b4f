"""The small operations against what torch or the definition says."""

import pytest
import torch
import torch.nn.functional as F

from fluxline.ops.attention import attend
from fluxline.ops.norm import EPS, modulated_norm, rms_norm
from fluxline.ops.rope import rope_table, rotate


def test_rms_norm_is_torchs():
    x, weight = torch.randn(2, 5, 16), torch.randn(16)

    torch.testing.assert_close(rms_norm(x, weight), F.rms_norm(x, (16,), weight, eps=EPS))


def test_rms_norm_keeps_its_input():
    x = torch.randn(3, 8)
    before = x.clone()
    rms_norm(x, torch.ones(8))

    assert torch.equal(x, before)


def test_modulation_of_nothing_is_the_plain_norm():
    x = torch.randn(2, 5, 16)
    zero = torch.zeros(2, 1, 16)

    torch.testing.assert_close(modulated_norm(x, zero, zero), F.layer_norm(x, (16,), eps=EPS))


def test_attention_is_softmax_of_scaled_products():
    q, k, v = (torch.randn(2, 3, 7, 8) for _ in range(3))
    weights = (q @ k.transpose(-1, -2) / 8**0.5).softmax(-1)
    expected = (weights @ v).transpose(1, 2).reshape(2, 7, 24)

    torch.testing.assert_close(attend(q, k, v), expected, rtol=1e-5, atol=1e-5)


def test_the_origin_is_not_turned():
    x = torch.randn(1, 4, 2, 16)
    table = rope_table(torch.zeros(4, 3), (4, 6, 6))

    assert torch.equal(rotate(x, table[None]), x)


@pytest.mark.parametrize("moved", [1.0, 5.0, 30.0])
def test_scores_depend_on_distance_alone(moved):
    q, k = torch.randn(1, 1, 16), torch.randn(1, 1, 16)
    near, far = torch.tensor([[0.0, 2, 3]]), torch.tensor([[0.0, 7, 1]])

    def score(shift: float) -> torch.Tensor:
        turned = [
            rotate(x, rope_table(ids + shift, (4, 6, 6))[None]) for x, ids in ((q, near), (k, far))
        ]
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(score(0.0), score(moved), rtol=1e-4, atol=1e-4)


def test_turning_keeps_length_and_dtype():
    x = torch.randn(1, 6, 2, 3, 16, dtype=torch.bfloat16)
    turned = rotate(x, rope_table(torch.rand(6, 3) * 50, (4, 6, 6))[None])

    assert turned.dtype == torch.bfloat16
    torch.testing.assert_close(turned.norm(), x.norm(), rtol=1e-2, atol=1e-2)
