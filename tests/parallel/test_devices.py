"""Ranks on cards that are not there, over an NCCL that is not there: each rank's own work is done,
one rank after another, and what they would say to each other is put together afterwards."""

from collections import deque
from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist

from fluxline.degrees import degrees_of
from fluxline.engine.build import open_model
from fluxline.engine.ranks import divide
from fluxline.parallel.group import Group
from fluxline.parallel.meeting import Meeting
from tests.cards import Cards, card_of
from tests.drawing import drawn, jobs_of, weights_of
from tests.streams import pretend

GIVEN = (
    "ulysses=2", "ring=2", "ulysses=2,ring=2", "cfg=2", "cfg=2,ulysses=2", "tensor=2",
    "stages=2", "stages=3", "cfg=2,stages=2",
    "ulysses=2 piflux,sync=1", "ulysses=3 distrifusion,sync=1",
    "ulysses=2 pipefusion", "ulysses=3 pipefusion", "stages=3 pipefusion",
)  # fmt: skip


@dataclass(frozen=True)
class Begun:
    """What one rank has begun to exchange in one group, at once: with whom, which way, how much."""

    number: int
    group: str
    parts: tuple[tuple[str, int, int], ...]


class Nccl:
    """Stands where NCCL does for one rank, and keeps what is asked of it, in its order.

    It wants what NCCL documents: what is sent lies close together on the rank's own card, which is
    the thread's, and all of a group speak before some of it do.
    """

    def __init__(self, rank):
        self.rank, self.card = rank, torch.device("cuda", rank)
        self.own = None
        self.log, self.met = [], set()

    def begin(self, operations):
        """For `dist.batch_isend_irecv`."""
        (group,) = {operation.group.group_name for operation in operations}
        assert group in self.met, "some of a group exchange before all of it have spoken"
        parts = []
        for operation in operations:
            verb = "send" if operation.op is dist.isend else "receive"
            self._vet(operation.tensor)
            parts.append((verb, operation.peer, operation.tensor.nbytes))
            if verb == "receive":
                operation.tensor.zero_()
        return [self._begun(group, parts)]

    def all_reduce(self, tensor, group):
        """For `dist.all_reduce`: all have the same."""
        self._vet(tensor)
        self.met.add(group.group_name)
        members = len(dist.get_process_group_ranks(group))
        tensor *= members
        self._begun(group.group_name, [("sum", members, tensor.nbytes)]).wait()

    def _vet(self, tensor):
        assert card_of(tensor) == self.card, f"{card_of(tensor)} in place of {self.card}"
        assert self.own == self.rank, "the thread's own card is another"
        assert tensor.is_contiguous()

    def _begun(self, group, parts):
        begun = Begun(len(self.log), group, tuple(parts))
        self.log.append(begun)
        return Work(self.log, begun.number)


@dataclass
class Work:
    """What has begun; later work of the rank waits for it."""

    log: list
    number: int

    def wait(self):
        self.log.append(self.number)


def said_by(rank, given, folder, monkeypatch):
    """What a rank would exchange to draw two pictures one after another, in its order."""
    parallel, _, approximation = given.partition(" ")
    degrees = degrees_of(parallel)
    nccl, begin = Nccl(rank), dist.init_process_group
    streams = pretend(monkeypatch, count=degrees.ranks)
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: setattr(nccl, "own", number))
    monkeypatch.setattr(dist, "batch_isend_irecv", nccl.begin)
    monkeypatch.setattr(dist, "all_reduce", nccl.all_reduce)
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **more: begin("fake", **more))
    asked = {"parallel": approximation} if approximation else {"cfg_scale": 2.0}
    with Cards(streams) as cards:
        meeting = Meeting(dist.HashStore(), rank, degrees.ranks, "here")
        crew = meeting.crew(degrees, nccl.card, "word")
        try:
            whole = degrees.tensor * degrees.stages == 1
            model = open_model(folder, str(nccl.card), "bf16", crew=None if whole else crew)
            assert {card_of(weight) for weight in weights_of(model)} == {nccl.card}
            divide(model, crew)
            for job in (jobs_of(model, steps=steps, **asked)[0] for steps in (5, 4)):
                _, _, waits = drawn(model, job, cards=cards, crew=crew)
                assert not any(waits)
        finally:
            crew.part()
            monkeypatch.undo()
    return nccl.log


def left_of(logs):
    """What each rank never comes to, where a group's exchanges go in their order and both ends have
    to be there."""
    to_do = [deque(log) for log in logs]
    lanes: dict[tuple[int, str], deque[Begun]] = {}
    parts_left: dict[tuple[int, int], set] = {}
    moves = True
    while moves:
        moves = False
        for rank, rest in enumerate(to_do):
            while rest:
                if isinstance(rest[0], Begun):
                    begun = rest.popleft()
                    lanes.setdefault((rank, begun.group), deque()).append(begun)
                    parts_left[rank, begun.number] = set(begun.parts)
                elif parts_left[rank, rest[0]]:
                    break
                else:
                    rest.popleft()
                moves = True
        for (rank, group), lane in lanes.items():
            moves |= lane_moves(rank, group, lanes, parts_left) if lane else False
        for (rank, _), lane in lanes.items():
            while lane and not parts_left[rank, lane[0].number]:
                lane.popleft()
                moves = True
    return [list(rest) for rest in to_do]


def lane_moves(rank, group, lanes, parts_left):
    """Match the first exchange of a rank in a group with those of its peers."""
    own = parts_left[rank, lanes[rank, group][0].number]
    heads = {r: lane[0] for (r, name), lane in lanes.items() if name == group and lane}
    before = len(own)
    for verb, peer, size in tuple(own):
        if verb == "sum":
            ready = [r for r, head in heads.items() if head.parts == ((verb, peer, size),)]
            if len(ready) == peer:
                for r in ready:
                    parts_left[r, heads[r].number].clear()
        elif verb == "send" and peer in heads:
            answer = ("receive", rank, size)
            if answer in parts_left[peer, heads[peer].number]:
                parts_left[peer, heads[peer].number].remove(answer)
                own.remove((verb, peer, size))
    return len(own) < before


@pytest.mark.parametrize("given", GIVEN)
def test_ranks_on_cards_say_what_nccl_takes_and_none_waits_for_ever(
    given, schnell_folder, monkeypatch
):
    ranks = degrees_of(given.partition(" ")[0]).ranks
    logs = [said_by(rank, given, str(schnell_folder), monkeypatch) for rank in range(ranks)]
    assert all(logs)
    assert not any(left_of(logs))


def test_who_waits_for_what_never_comes_is_found():
    first = [Begun(0, "a", (("receive", 1, 4),)), 0, Begun(2, "b", (("send", 1, 4),)), 2]
    other = [Begun(0, "b", (("receive", 0, 4),)), 0, Begun(2, "a", (("send", 0, 4),)), 2]
    assert all(left_of([first, other]))
    assert not any(left_of([first, other[2:] + other[:2]]))


def crossed():
    """What a rank gets on two lanes that the other speaks on in the other order."""
    lanes = [Group((0, 1)) for _ in range(2)]
    if lanes[0].rank == 0:
        waits = [
            lane.exchange({1: torch.full((1,), number)}, {}) for number, lane in enumerate(lanes)
        ]
        came = []
    else:
        came = [torch.empty(1, dtype=torch.int64) for _ in lanes]
        waits = [lanes[number].exchange({}, {0: came[number]}) for number in (1, 0)]
    for wait in waits:
        wait()
    return [int(tensor) for tensor in came]


def test_what_travels_in_one_group_is_not_taken_for_what_travels_in_another(ranks):
    assert ranks.run(2, crossed) == [[], [0, 1]]
