"""Who is let in on the line between ranks, and what its end means to them."""

import contextlib
import queue
import socket
import threading

import pytest
from torch.distributed import HashStore

from fluxline import wire
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
    with contextlib.closing(Follow(first.store, 1)) as line:
        assert first.is_turned_away(1, line.word)
        assert first.is_turned_away(3, line.word)


def test_ranks_have_their_own_numbers_in_whatever_order_they_come(first):
    second, third = Follow(first.store, 2), Follow(first.store, 1)
    with contextlib.closing(first.lead()):
        second.broke("no memory")

        assert first.lost.get(timeout=HEARD_S) == "rank 2 cannot go on: no memory"
    for line in (second, third):
        line.close()


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
