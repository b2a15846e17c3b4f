"""The other ranks of a replica, as processes of the first."""

import contextlib
import threading

import psutil
import pytest

from fluxline.worker.ranks import Ranks

SLEEP = ("timeit", ["-n1", "-r1", "__import__('time').sleep(100)"])
ENDED_S = 30.0


@pytest.fixture
def other():
    """Two other ranks that do nothing, their processes by number, what is told of them, and the
    first rank's end."""
    told, ended = [], threading.Event()
    ranks = Ranks(*SLEEP, tell=told.append, die=ended.set)
    for rank in (1, 2):
        ranks.start(rank, {"RANK": str(rank)})
    children = [one for one in psutil.Process().children() if SLEEP[0] in one.cmdline()]
    processes = {int(one.environ()["RANK"]): one for one in children}
    yield ranks, processes, told, ended
    for process in processes.values():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def test_one_that_is_killed_is_told_of_and_ends_all(other):
    _, processes, told, ended = other
    processes[2].kill()

    assert ended.wait(ENDED_S)
    assert told == ["rank 2 was killed by signal 9"]
    assert psutil.wait_procs(processes.values(), timeout=ENDED_S)[1] == []


def test_those_that_are_ended_here_are_not_told_of(other):
    ranks, _, told, ended = other
    ranks.lost("rank 2 has said nothing")
    assert ended.is_set()

    ranks.lost("rank 1 is gone")
    assert told == ["rank 2 has said nothing"]
