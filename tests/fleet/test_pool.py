"""Several replicas as one: work goes where least is outstanding, and a lost part is drawn again."""

import asyncio

import pytest

from fluxline.errors import EngineError, InvalidParams, NotReady
from fluxline.fleet.pool import Pool
from fluxline.request import (
    CancelledEvent,
    Done,
    Failed,
    GenerationRequest,
    ImageReady,
    ImageResult,
    Planned,
    Progress,
    Queued,
    SamplingParams,
    Started,
)
from tests.worker.fake_engine import INFO


class FakeReplica:
    """A replica whose events the test sends."""

    def __init__(self, state="ready"):
        self.stats = ()
        self.state, self.reason, self.restarts = state, "" if state == "ready" else state, 0
        self.models = (INFO,) if state == "ready" else ()
        self.held, self.cancelled, self.is_started = {}, [], False
        self._settled = asyncio.Event()
        self._ended = asyncio.Event()

    def start(self):
        self.is_started = True

    async def settled(self):
        await self._settled.wait()
        return self.state

    async def ended(self):
        await self._ended.wait()

    def submit(self, request, publish):
        self.held[request.id] = (request, publish)

    def cancel(self, request_id):
        self.cancelled.append(request_id)

    async def stop(self):
        self.state = "stopped"
        self._ended.set()

    def turn(self, state):
        self.state, self.models = state, (INFO,)
        self._settled.set()

    def draw(self, request_id, *indices):
        request, publish = self.held[request_id]
        for index in indices:
            publish(Progress(request_id, index, 1, 1))
            picture = request.pictures()[index]
            publish(
                ImageReady(
                    request_id,
                    ImageResult(
                        index=index, seed=picture.seed, data=b"", format="png", width=8, height=8,
                        model="m", params=picture.params, timings_s={},
                    ),
                )
            )  # fmt: skip

    def tell(self, request_id, event):
        self.held[request_id][1](event)


def asked(request_id="r", n=1, **fields):
    return GenerationRequest(id=request_id, prompt="p", seed=10, n=n, **fields)


def shown(events):
    return [
        (e.image.index, e.image.seed) if isinstance(e, ImageReady) else type(e).__name__
        for e in events
        if not isinstance(e, Progress)
    ]


@pytest.fixture
def members():
    return [FakeReplica(), FakeReplica(), FakeReplica()]


@pytest.fixture
def pool(members):
    return Pool(members)


async def test_it_is_ready_as_soon_as_one_member_is():
    members = [FakeReplica("starting"), FakeReplica("starting")]
    pool = Pool(members)
    pool.start()
    assert all(member.is_started for member in members)
    waiting = asyncio.create_task(pool.settled())
    await asyncio.sleep(0)
    assert (pool.state, waiting.done()) == ("starting", False)
    members[1].turn("ready")
    assert await waiting == "ready"
    assert (pool.state, pool.ready, pool.models) == ("ready", 1, (INFO,))


async def test_it_has_failed_only_when_all_have():
    members = [FakeReplica("failed"), FakeReplica("starting")]
    pool = Pool(members)
    assert pool.state == "starting"
    members[1].turn("failed")
    members[0]._settled.set()
    assert await pool.settled() == "failed"


def test_a_request_goes_where_the_least_work_is_outstanding(pool, members):
    pool.submit(asked("big", n=4), lambda _: None)
    pool.submit(asked("small", n=1), lambda _: None)
    pool.submit(asked("third", n=1), lambda _: None)
    pool.submit(asked("fourth", n=1), lambda _: None)
    assert [sorted(member.held) for member in members] == [["big"], ["fourth", "small"], ["third"]]


def test_work_that_is_done_weighs_no_more(pool, members):
    pool.submit(asked("a", n=9), lambda _: None)
    members[0].draw("a", *range(9))
    members[0].tell("a", Done("a"))
    for name in ("b", "c", "d"):
        pool.submit(asked(name), lambda _: None)
    assert [sorted(member.held) for member in members] == [["a", "b"], ["c"], ["d"]]


def test_a_request_is_spread_in_contiguous_parts_and_put_together_again(pool, members):
    events = []
    pool.submit(asked(n=5, spread=2), events.append)
    assert [list(member.held) for member in members] == [["r.0"], ["r.1"], []]
    for member, part in zip(members, ("r.0", "r.1"), strict=False):
        member.tell(part, Queued(part))
        member.tell(part, Started(part))
    members[1].draw("r.1", 1, 0)
    members[1].tell("r.1", Done("r.1"))
    members[0].draw("r.0", 0, 1, 2)
    members[0].tell("r.0", Done("r.0"))
    wanted = [(4, 14), (3, 13), (0, 10), (1, 11), (2, 12)]
    assert shown(events) == ["Queued", "Started", *wanted, "Done"]
    assert {event.request_id for event in events} == {"r"}
    assert [e.index for e in events if isinstance(e, Progress)] == [4, 3, 0, 1, 2]


def test_a_request_is_never_spread_over_more_than_it_has_pictures_or_the_pool_is_ready(members):
    members[2].state = "restarting"
    pool = Pool(members)
    pool.submit(asked(n=9, spread=99), lambda _: None)
    assert [len(member.held) for member in members] == [1, 1, 0]
    pool.submit(asked("one", n=1, spread=99), lambda _: None)
    assert sum("one" in member.held for member in members) == 1


def test_a_plan_keeps_its_pictures_when_it_is_spread(pool, members):
    plan = tuple(Planned(seed=s, params=SamplingParams(steps=s)) for s in (3, 1, 4, 1))
    pool.submit(asked(plan=plan, spread=3), lambda _: None)
    parts = [request.plan for member in members for request, _ in member.held.values()]
    assert [len(part) for part in parts] == [2, 1, 1]
    assert sum(parts, ()) == plan


def test_cancelling_reaches_every_part_and_ends_once(pool, members):
    events = []
    pool.submit(asked(n=3, spread=3), events.append)
    pool.cancel("r")
    assert [member.cancelled for member in members] == [["r.0"], ["r.1"], ["r.2"]]
    for member, part in zip(members, ("r.0", "r.1", "r.2"), strict=True):
        member.tell(part, CancelledEvent(part))
    assert events == [CancelledEvent("r")]
    pool.cancel("r")
    pool.cancel("nobody")


def test_a_part_that_fails_ends_the_request_and_the_other_parts(pool, members):
    events = []
    pool.submit(asked(n=2, spread=2), events.append)
    members[0].tell("r.0", Failed("r.0", "out_of_memory", "no memory"))
    members[1].draw("r.1", 0)
    assert events == [Failed("r", "out_of_memory", "no memory")]
    assert members[1].cancelled == ["r.1"]


def test_a_refusal_is_passed_on_as_the_error_it_is(pool, members):
    events, error = [], InvalidParams("width is wrong", field="width")
    pool.submit(asked(n=2, spread=2), events.append)
    members[1].tell("r.1", error)
    assert events == [error]


def test_what_a_replica_that_failed_for_good_had_left_is_drawn_by_another(pool, members):
    events = []
    pool.submit(asked(n=4), events.append)
    members[0].draw("r", 1)
    members[0].state = "failed"
    members[0].tell("r", Failed("r", "overloaded", "the worker failed"))
    left = {name: request for m in members[1:] for name, (request, _) in m.held.items()}
    assert {n: [p.seed for p in r.pictures()] for n, r in left.items()} == {
        "r+0": [10],
        "r+1": [12, 13],
    }
    for member in members[1:]:
        for name, (request, _) in list(member.held.items()):
            member.draw(name, *range(request.count))
            member.tell(name, Done(name))
    assert sorted(e for e in shown(events) if isinstance(e, tuple)) == [
        (0, 10), (1, 11), (2, 12), (3, 13),
    ]  # fmt: skip
    assert shown(events)[-1] == "Done"


def test_with_no_replica_left_the_request_fails(members):
    pool, events = Pool(members[:1]), []
    pool.submit(asked(), events.append)
    members[0].state = "failed"
    members[0].tell("r", Failed("r", "overloaded", "the worker failed"))
    assert events == [Failed("r", "overloaded", "the worker failed")]
    with pytest.raises(NotReady):
        pool.submit(asked("next"), events.append)


def test_a_request_that_a_member_will_not_take_is_not_held(pool, members):
    def refuse(request, publish):
        raise EngineError("too long for a frame")

    members[1].submit = refuse
    with pytest.raises(EngineError):
        pool.submit(asked(n=2, spread=2), lambda _: None)
    assert members[0].cancelled == ["r.0"]
    for name in ("a", "b", "c"):
        members[1].submit = FakeReplica.submit.__get__(members[1])
        pool.submit(asked(name), lambda _: None)
    assert [len(member.held) for member in members] == [2, 1, 1]


async def test_stopping_stops_all(pool, members):
    await pool.stop()
    await pool.ended()
    assert [member.state for member in members] == ["stopped"] * 3
