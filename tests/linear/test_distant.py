"""A weight that stays at home: the same numbers, a few rows at a time."""

import pytest
import torch
from torch import nn

from fluxline.linear.distant import Distant


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("chunk_bytes", [1, 4 * 8 * 5, 10**6])
def test_it_computes_what_its_base_computes(bias, chunk_bytes):
    torch.manual_seed(0)
    base = nn.Linear(8, 33, bias=bias)
    x = torch.randn(2, 3, 8)
    torch.testing.assert_close(Distant(base, chunk_bytes=chunk_bytes)(x), base(x))


def test_no_more_rows_than_a_chunk_leave_home_at_once(monkeypatch):
    from fluxline.linear import distant

    sizes = []
    monkeypatch.setattr(
        distant, "_at", lambda tensor, device: sizes.append(tensor.nbytes) or tensor
    )
    Distant(nn.Linear(8, 33), chunk_bytes=4 * 8 * 5)(torch.ones(1, 8))
    assert max(sizes) == 4 * 8 * 5
    assert sum(sizes) == 4 * (8 * 33 + 33)


@pytest.mark.gpu
def test_its_weight_stays_on_the_cpu_while_a_card_computes():
    base = nn.Linear(64, 100)
    layer = Distant(base, chunk_bytes=4 * 64 * 7)
    x = torch.randn(2, 64)
    torch.testing.assert_close(layer(x.cuda()).cpu(), base(x), rtol=1e-4, atol=1e-4)
    assert base.weight.device.type == "cpu"
