"""How ranks lose each other: who is lost is named, and nobody is waited for in silence."""

import queue
import threading

import pytest
from torch.distributed import HashStore

from fluxline import wire
from fluxline.parallel import line
from fluxline.parallel.line import Follow, Lead

WAIT_S = 20


class Ends:
    """The ends of one line, and what each has heard. The ranks join in the order given."""

    def __init__(self, *ranks):
        store = HashStore()
        self.lost, self.heard, self.ended = queue.Queue(), queue.Queue(), queue.Queue()
        made = queue.Queue()
        lead = lambda: made.put(Lead(store, "127.0.0.1", len(ranks) + 1))  # noqa: E731
        threading.Thread(target=lead, daemon=True).start()
        self.others = {rank: Follow(store, rank) for rank in ranks}
        self.lead = made.get(timeout=WAIT_S)

    def watch(self):
        self.watch_others()
        self.watch_first()

    def watch_others(self):
        for rank, other in self.others.items():
            other.watch(
                lambda message, rank=rank: self.heard.put((rank, message)),
                lambda rank=rank: self.ended.put(rank),
            )

    def watch_first(self):
        self.lead.watch(self.lost.put)


@pytest.fixture
def ends():
    made = []

    def make(*ranks):
        made.append(Ends(*ranks))
        return made[-1]

    yield make
    for one in made:
        one.lead.close()
        for other in one.others.values():
            other._sock.close()


def test_all_hear_what_the_first_rank_says(ends):
    ends = ends(2, 1)
    ends.watch()

    ends.lead.tell(wire.Prepare(2))

    heard = sorted((ends.heard.get(timeout=WAIT_S) for _ in range(2)), key=lambda one: one[0])
    assert heard == [(1, wire.Prepare(2)), (2, wire.Prepare(2))]


def test_one_that_cannot_go_on_is_named_by_its_rank_and_not_by_when_it_came(ends):
    ends = ends(3, 1, 2)
    ends.watch()

    ends.others[1].broke("RuntimeError: why")

    assert ends.lost.get(timeout=WAIT_S) == "rank 1 cannot go on: RuntimeError: why"


def test_each_that_is_lost_is_told_of(ends):
    ends = ends(1, 2)
    ends.watch()

    for rank in (1, 2):
        ends.others[rank].broke("why")

    lost = {ends.lost.get(timeout=WAIT_S) for _ in range(2)}
    assert lost == {"rank 1 cannot go on: why", "rank 2 cannot go on: why"}


def test_others_end_when_the_first_hangs_up_which_loses_nobody(ends):
    ends = ends(1, 2)
    ends.watch()

    ends.lead.close()

    assert {ends.ended.get(timeout=WAIT_S) for _ in range(2)} == {1, 2}
    with pytest.raises(queue.Empty):
        ends.lost.get(timeout=0.2)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(line, "SILENT_S", 1.0)
    monkeypatch.setattr(line, "BEAT_S", 0.1)


@pytest.mark.usefixtures("quick")
def test_one_that_says_nothing_is_lost(ends):
    ends = ends(1, 2)
    ends.watch_first()  # who does not watch does not beat

    lost = {ends.lost.get(timeout=WAIT_S) for _ in range(2)}
    assert lost == {f"rank {rank} has said nothing for 1 s" for rank in (1, 2)}


@pytest.mark.usefixtures("quick")
def test_others_end_when_the_first_says_nothing(ends):
    ends = ends(1, 2)
    ends.watch_others()

    assert {ends.ended.get(timeout=WAIT_S) for _ in range(2)} == {1, 2}


@pytest.mark.usefixtures("quick")
def test_ends_that_beat_keep_the_line(ends):
    ends = ends(1)
    ends.watch()

    with pytest.raises(queue.Empty):
        ends.lost.get(timeout=3.0)
    assert ends.ended.empty()
