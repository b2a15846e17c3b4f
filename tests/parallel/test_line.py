"""Who is let in on the line between ranks, who is lost on it, and what its end means to them."""

import contextlib
import queue
import socket
import threading

import pytest
from torch.distributed import HashStore

from fluxline import wire
from fluxline.parallel import line
from fluxline.parallel.line import LINE, Follow, Lead

HEARD_S = 10.0


class Started:
    """The first of three ranks, waiting for the others."""

    def __init__(self, host="127.0.0.1"):
        self.store, self.lost = HashStore(), queue.SimpleQueue()
        self._lead = queue.SimpleQueue()
        threading.Thread(target=self._wait, args=(host,), daemon=True).start()

    def _wait(self, host):
        self._lead.put(Lead(self.store, host, 3))

    def lead(self):
        lead = self._lead.get(timeout=HEARD_S)
        lead.watch(self.lost.put)
        return lead

    @property
    def port(self):
        return int(self.store.get(LINE).decode().split()[1])

    def is_turned_away(self, rank, word, at="127.0.0.1"):
        with socket.create_connection((at, self.port), timeout=HEARD_S) as sock:
            sock.sendall(wire.frame(wire.Joined(rank, word)))
            return sock.recv(1) == b""


@pytest.fixture
def first():
    return Started()


def test_who_does_not_know_the_word_is_turned_away(first):
    assert first.is_turned_away(1, "another word")


def test_a_rank_comes_once_and_has_a_number_of_this_replica(first):
    with contextlib.closing(Follow(first.store, 1)) as one:
        assert first.is_turned_away(1, one.word)
        assert first.is_turned_away(3, one.word)


def test_ranks_have_their_own_numbers_in_whatever_order_they_come(first):
    second, third = Follow(first.store, 2), Follow(first.store, 1)
    with contextlib.closing(first.lead()):
        second.broke("no memory")

        assert first.lost.get(timeout=HEARD_S) == "rank 2 cannot go on: no memory"
    for other in (second, third):
        other.close()


def test_a_first_rank_that_has_done_loses_nobody_and_is_not_lost(first):
    said, lost = queue.SimpleQueue(), queue.SimpleQueue()
    others = [Follow(first.store, rank) for rank in (1, 2)]
    lead = first.lead()
    for other in others:
        other.watch(said.put, lambda: lost.put("lost"))
    lead.tell(wire.Over())

    assert [said.get(timeout=HEARD_S) for _ in others] == [wire.Over(), wire.Over()]
    for other in others:
        other.close()
    lead.close()
    assert first.lost.empty()
    assert lost.empty()


def test_other_nodes_reach_the_first_by_a_name_that_may_mean_loopback_to_itself():
    first = Started(host=socket.gethostname())

    assert first.is_turned_away(1, "another word", at="127.0.0.3")


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

    ends.lead.tell(wire.Prepare())

    heard = sorted((ends.heard.get(timeout=WAIT_S) for _ in range(2)), key=lambda one: one[0])
    assert heard == [(1, wire.Prepare()), (2, wire.Prepare())]


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
