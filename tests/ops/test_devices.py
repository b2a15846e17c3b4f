"""What is asked of a card's own kernels, on a card that is not there."""

import pytest
import torch

from fluxline.ops.attention import attend_by_head, attend_partly, merged
from tests.cards import Cards, card_of
from tests.streams import pretend


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("cut", [0, 5, 37])
@torch.inference_mode()
def test_parts_of_the_keys_are_attended_to_and_merged_on_the_card(dtype, cut, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 37, 3, 16, generator=generator).to(dtype) for _ in range(3))
    with Cards(pretend(monkeypatch)) as cards:
        q, k, v = (tensor.to("cuda").transpose(1, 2) for tensor in (q, k, v))
        cards.waits.clear()
        parts = [attend_partly(q, k[:, :, w], v[:, :, w]) for w in (slice(cut), slice(cut, None))]
        out, lse = merged(*parts)
        assert card_of(out) == card_of(lse) == torch.device("cuda", 0)
        assert out.dtype == lse.dtype == torch.float32
        assert lse.shape == q.shape[:3]
        whole = attend_by_head(q, k, v)
    assert cards.waits == []
    tolerance = max(2 * torch.finfo(dtype).eps, 1e-5)  # sums in another order
    torch.testing.assert_close(out.to(dtype), whole, rtol=tolerance, atol=tolerance)
