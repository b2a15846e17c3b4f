"""Every kind of layer on a card that is not there: all its fields and tables lie on it."""

import pytest
import torch
from torch import nn

from fluxline.linear.distant import Distant
from fluxline.linear.gguf import GGUF_KINDS
from fluxline.linear.quantized import KINDS, OWN_KINDS, QuantizedLinear
from tests.cards import Cards, card_of
from tests.linear.conftest import weight_of
from tests.streams import pretend

CARD = torch.device("cuda", 0)
OLD = (7, 5)
"""A card that has none of the products in fewer bits but int8's."""


def layer_of(name, rows=96, columns=256):
    layer = QuantizedLinear(KINDS[name], nn.Linear(columns, rows))
    if name in OWN_KINDS:
        layer.take_rows(0, weight_of(rows, columns))
    else:  # bytes below 60: the float16s among them are small numbers
        generator = torch.Generator().manual_seed(0)
        blocks = layer.get_buffer("blocks")
        blocks.copy_(torch.randint(0, 60, blocks.shape, generator=generator, dtype=torch.uint8))
    return layer


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("name", [*OWN_KINDS, *GGUF_KINDS])
@torch.inference_mode()
def test_a_layer_in_fewer_bits_gives_what_it_gives_on_the_cpu(name, dtype, monkeypatch):
    streams = pretend(monkeypatch, capability=OLD)
    layer = layer_of(name)
    layer.bias.data = layer.bias.data.to(dtype)
    x = torch.randn(2, 10, 256, generator=torch.Generator().manual_seed(1)).to(dtype)
    wanted = layer(x)

    with Cards(streams) as cards:
        layer.to("cuda")
        given = x.to("cuda")
        layer(given)  # tables come once
        cards.waits.clear()
        answer = layer(given)
        assert card_of(answer) == CARD
        assert answer.dtype == dtype

    assert cards.waits == []
    tolerance = 1e-5 if name == "int8-dynamic" else 0  # sums in int32, in place of float32
    torch.testing.assert_close(answer, wanted, rtol=tolerance, atol=tolerance)


@torch.inference_mode()
def test_a_distant_layer_is_carried_in_parts_without_a_wait(monkeypatch):
    streams, layer = pretend(monkeypatch), nn.Linear(8, 12)
    x = torch.ones(3, 8)
    wanted = layer(x)
    with Cards(streams) as cards:
        given = x.to("cuda")
        cards.waits.clear()
        answer = Distant(layer, chunk_bytes=8 * 4 * 5)(given)
        assert card_of(answer) == CARD
    assert cards.waits == []
    torch.testing.assert_close(answer, wanted)
