"""The cards that are not there refuse what real ones refuse."""

import pytest
import torch

from tests.cards import Cards, TwoCards
from tests.streams import Race, pretend


@pytest.fixture
def streams(monkeypatch):
    return pretend(monkeypatch)


@pytest.mark.parametrize(
    "meet",
    [
        lambda card, here: card + here,
        lambda card, here: torch.cat((card, here)),
        lambda card, here: torch.nn.functional.linear(card, here),
        lambda card, here: torch.where(here > 0, card, card),
        lambda card, here: here[card[0].long()],
        lambda card, here: here * card.sum(),
    ],
)
def test_a_card_and_the_cpu_do_not_meet(streams, meet):
    with Cards(streams), pytest.raises(TwoCards):
        meet(torch.ones(2, 2, device="cuda"), torch.ones(2, 2))


def test_a_card_gives_no_array(streams):
    with Cards(streams), pytest.raises(TypeError, match="can't convert cuda:0"):
        torch.ones(2, device="cuda").numpy()


@pytest.mark.parametrize(
    ("ask", "waits"),
    [
        (lambda card: card[0].item(), 1),
        (lambda card: bool(card.sum() > 0), 1),
        (lambda card: card[card > 0], 1),
        (lambda card: card.cpu(), 1),
        (lambda card: card + torch.tensor(2.0), 0),
        (lambda card: card.to("cuda", torch.float16), 0),
        (lambda card: torch.ones(2).to("cuda"), 1),
        (lambda card: torch.ones(2).pin_memory().to("cuda", non_blocking=True), 0),
        (lambda card: card.copy_(torch.ones(2)), 1),
        (lambda card: torch.tensor([1.0], device="cuda"), 1),
    ],
)
def test_the_host_waits_where_it_wants_to_know(streams, ask, waits):
    with Cards(streams) as cards:
        ask(torch.ones(2, device="cuda"))
    assert len(cards.waits) == waits


def brought(streams):
    """A tensor that a stream of its own brings, and the event of its coming."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        came = torch.ones(2).pin_memory().to("cuda", non_blocking=True)
        return came, stream.record_event()


def test_what_is_still_on_its_way_is_not_read(streams):
    with Cards(streams):
        came, event = brought(streams)
        with pytest.raises(Race, match="stream 0 reads what stream 1 may still write"):
            came + 1
        torch.cuda.current_stream().wait_event(event)
        came + 1


@pytest.mark.parametrize("is_lent", [True, False])
def test_memory_that_another_stream_reads_is_lent_to_it(streams, is_lent):
    with Cards(streams):
        came, event = brought(streams)
        torch.cuda.current_stream().wait_event(event)
        if is_lent:
            came.record_stream(torch.cuda.current_stream())
        came + 1
        del came
    assert len(streams.early) == (not is_lent)
