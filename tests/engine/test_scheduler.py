"""Who goes next, with a clock in the test's hand and no tensors anywhere."""

import itertools
import random
from dataclasses import replace

import pytest

from fluxline.ability import Footprint
from fluxline.engine.job import Advance, BatchKey, Job, Outcome, Plan, Stage
from fluxline.engine.scheduler import CALM, PRIORITY_S, Budget, Scheduler
from fluxline.errors import EngineError, OutOfMemory
from fluxline.request import GenerationRequest, SamplingParams

BUDGET = Budget(batch_tokens=400, resident_tokens=4000)
RATE = 1e-3  # seconds a token
_number = itertools.count()


def job(
    evaluations=4,
    tokens=100,
    *,
    owner="",
    priority=0,
    text=0,
    rows=1,
    drawn=(64, 64),
    kept_bytes=0,
):
    request_id = f"r{next(_number)}"
    return Job(
        request=GenerationRequest(id=request_id, prompt="", seed=0, owner=owner, priority=priority),
        index=0,
        seed=0,
        params=SamplingParams(),
        drawn=drawn,
        key=BatchKey(tokens - text, text),
        rows=rows,
        evaluations=evaluations,
        kept_bytes=kept_bytes,
    )


class Bench:
    """A scheduler and a runner that always succeeds, taking RATE seconds a token."""

    def __init__(self, budget=BUDGET):
        self.scheduler = Scheduler(budget, seconds_per_token=RATE)
        self.now = 0.0
        self.ended: list[str] = []

    def add(self, *jobs):
        for each in jobs:
            self.scheduler.add(each, self.now)
        return jobs

    def tick(self) -> Plan:
        plan = self.scheduler.next(self.now)
        seconds = RATE * sum(j.tokens for j in plan.evaluate)
        self.now += seconds
        outcome = Outcome(
            advanced={j.id: Advance(1, j.done + 1 == j.evaluations) for j in plan.evaluate},
            pictures={j.id: object() for j in plan.decode},
            evaluated_s=seconds,
        )
        changes = self.scheduler.settle(plan, outcome)
        self.ended += [c.job.id for c in changes if c.picture is not None]
        return plan

    def run(self, limit=10_000):
        for _ in range(limit):
            if self.scheduler.is_idle:
                return
            self.tick()
        raise AssertionError("the scheduler never became idle")


def test_jobs_of_one_key_share_a_forward_whatever_else_differs():
    bench = Bench()
    a, b, _other = bench.add(job(4), job(50, owner="x"), job(4, tokens=120))

    assert {j.id for j in bench.tick().evaluate} == {a.id, b.id}


def alone(job):
    """The job as one that shares no forward."""
    job.key = replace(job.key, alone=job.id)
    return job


def test_jobs_that_share_no_forward_are_admitted_one_after_another_and_hold_up_nobody():
    bench = Bench()
    first, second, other = bench.add(alone(job(4)), alone(job(5)), job(50, owner="x"))

    plan = bench.tick()
    assert {j.id for j in plan.admit} == {first.id, other.id}
    while second.stage is Stage.WAITING:
        assert bench.scheduler.next(bench.now).admit in ((), (second,))
        plan = bench.tick()
        assert len({j.is_alone for j in plan.evaluate}) <= 1
    assert first.stage is not Stage.RUNNING
    bench.run()
    assert set(bench.ended) == {first.id, second.id, other.id}


ROOM = Footprint(free_bytes=1000, token_bytes=1, pixel_bytes=0.01, grid=1)


def test_what_a_job_keeps_is_not_there_for_the_others():
    bench = Bench(replace(BUDGET, footprint=ROOM))
    keeper, small, large = bench.add(
        alone(job(6, kept_bytes=700)), job(3, owner="x"), job(3, tokens=350, owner="y")
    )
    for _ in range(200):
        if bench.scheduler.is_idle:
            break
        plan = bench.tick()
        if keeper.stage is Stage.RUNNING and keeper.done != keeper.evaluations:
            assert large not in plan.evaluate
            assert sum(j.tokens for j in plan.evaluate if j is not keeper) <= 300
    assert set(bench.ended) == {keeper.id, small.id, large.id}


def test_a_job_that_keeps_much_waits_for_who_has_no_room_beside_it():
    bench = Bench(replace(BUDGET, footprint=ROOM))
    [large] = bench.add(job(3, tokens=350))
    bench.tick()
    [keeper] = bench.add(alone(job(2, kept_bytes=700, owner="x")))
    while large.id not in bench.ended:
        bench.tick()
        assert keeper.stage is Stage.WAITING or large.id in bench.ended
    bench.run()
    assert keeper.id in bench.ended


def test_several_evaluations_at_once_are_counted():
    bench = Bench()
    [one] = bench.add(alone(job(20)))
    plan = bench.scheduler.next(bench.now)
    seconds = 8 * one.tokens * RATE
    advanced = {one.id: Advance(8, is_over=False)}
    bench.scheduler.settle(plan, Outcome(advanced=advanced, evaluated_s=seconds))

    assert (one.done, one.work_left) == (8, 12 * one.tokens)


def test_text_and_image_tokens_both_count_for_the_key():
    bench = Bench()
    bench.add(job(tokens=100, text=10), job(tokens=100, text=20))

    assert len(bench.tick().evaluate) == 1


def test_a_forward_stays_within_its_token_budget():
    bench = Bench()
    bench.add(*(job() for _ in range(9)))

    assert len(bench.tick().evaluate) == 4


def test_a_job_with_guidance_counts_twice():
    bench = Bench()
    bench.add(*(job(rows=2) for _ in range(9)))

    assert len(bench.tick().evaluate) == 2


def test_a_job_larger_than_every_budget_still_runs_alone():
    bench = Bench(Budget(batch_tokens=50, resident_tokens=50))
    bench.add(job(), job())

    assert len(bench.tick().evaluate) == 1
    bench.run()
    assert len(bench.ended) == 2


def test_no_more_is_admitted_than_the_resident_budget_holds():
    bench = Bench(Budget(batch_tokens=100, resident_tokens=350))
    bench.add(*(job(owner="a") for _ in range(5)))

    assert len(bench.tick().admit) == 2  # a batch is kept free for somebody else
    bench.add(*(job(owner="b") for _ in range(5)))
    assert [j.request.owner for j in bench.tick().admit] == ["b"]
    assert not bench.tick().admit


def test_a_new_job_joins_between_two_evaluations():
    bench = Bench()
    (first,) = bench.add(job(10))
    bench.tick()
    (second,) = bench.add(job(10))

    assert [j.id for j in bench.tick().evaluate] == [first.id, second.id]


def test_a_short_job_overtakes_a_long_one_of_another_shape():
    bench = Bench()
    bench.add(job(50))
    bench.tick()
    (short,) = bench.add(job(2, tokens=80))

    assert [j.id for j in bench.tick().evaluate] == [short.id]


def test_a_long_job_is_not_starved_by_a_stream_of_short_ones():
    bench = Bench()
    (long,) = bench.add(job(100))  # 10 s of work
    for _ in range(2000):
        bench.add(job(1, tokens=90))
        bench.tick()
        if long.stage is Stage.ENDED:
            break

    assert long.stage is Stage.ENDED
    assert bench.now < 60


@pytest.mark.parametrize("ticks", range(31))
def test_a_flood_of_one_owner_does_not_delay_another(ticks):
    bench = Bench()
    bench.add(*(job(10, owner="flood", tokens=100) for _ in range(100)))
    for _ in range(ticks):
        bench.tick()
    (quiet,) = bench.add(job(4, tokens=80, owner="quiet"))
    began = bench.now
    while quiet.stage is not Stage.ENDED:
        bench.tick()

    assert bench.now - began <= 4 * (0.08 + 0.4) + 0.1  # at worst in turn with full batches


def test_two_owners_share_the_machine_evenly():
    bench = Bench(Budget(batch_tokens=100, resident_tokens=10_000))
    bench.add(*(job(10, owner="a") for _ in range(30)))
    bench.add(*(job(10, owner="b") for _ in range(3)))
    served = {"a": 0, "b": 0}
    for _ in range(40):
        for each in bench.tick().evaluate:
            served[each.request.owner] += 1

    assert abs(served["a"] - served["b"]) <= 2


@pytest.mark.parametrize(
    ("waited", "first"), [(0, "urgent"), (PRIORITY_S - 5, "urgent"), (PRIORITY_S + 5, "plain")]
)
def test_priority_is_worth_its_seconds_of_waiting_and_no_more(waited, first):
    bench = Bench()
    (plain,) = bench.add(job(10))
    bench.now += waited
    (urgent,) = bench.add(job(10, tokens=80, priority=1))

    assert bench.tick().evaluate == ((urgent,) if first == "urgent" else (plain,))


def test_a_cancelled_request_is_dropped_and_the_others_are_untouched():
    bench = Bench()
    gone, stays = bench.add(job(), job())
    bench.tick()
    bench.scheduler.cancel(gone.request.id)

    plan = bench.tick()

    assert plan.drop == (gone.id,)
    assert [j.id for j in plan.evaluate] == [stays.id]


def test_cancelling_twice_or_an_unknown_request_is_harmless():
    bench = Bench()
    (one,) = bench.add(job())
    for request_id in (one.request.id, one.request.id, "nobody"):
        bench.scheduler.cancel(request_id)

    bench.run()
    assert not bench.ended


def test_a_batch_too_large_is_halved_tried_again_and_grows_back():
    bench = Bench()
    jobs = bench.add(*(job(100) for _ in range(4)))
    plan = bench.scheduler.next(0)
    changes = bench.scheduler.settle(plan, Outcome(batch_too_large=True))

    assert not any(c.error for c in changes)
    assert bench.scheduler.batch_tokens == 200
    assert len(bench.tick().evaluate) == 2
    for _ in range(CALM):
        bench.tick()
    assert bench.scheduler.batch_tokens == 400
    bench.run()
    assert sorted(bench.ended) == sorted(j.id for j in jobs)


def without_room(bench, *jobs):
    plan = bench.scheduler.next(bench.now)
    advanced = {j.id: Advance(1, False) for j in plan.evaluate if j not in jobs}
    outcome = Outcome(advanced=advanced, no_room={j.id for j in jobs}, evaluated_s=1.0)
    return [c for c in bench.scheduler.settle(plan, outcome) if c.error]


def test_a_job_that_does_not_fit_alone_fails_and_says_what_to_do():
    bench = Bench()
    (large,) = bench.add(job(drawn=(2048, 2048)))

    (change,) = without_room(bench, large)

    assert isinstance(change.error, OutOfMemory)
    assert "2048x2048" in change.error.message
    bench.run()


def test_a_job_without_room_waits_until_fewer_run_and_keeps_its_room_to_the_end():
    bench = Bench()
    first, large = bench.add(job(3), job(5))

    assert not without_room(bench, large)
    (late,) = bench.add(job(1))
    while large not in bench.tick().admit:
        assert first.stage is not Stage.ENDED
    while large.stage is Stage.RUNNING:
        assert not bench.tick().admit
    bench.run()

    assert sorted(bench.ended) == sorted([first.id, large.id, late.id])


class Cramped(Bench):
    """A device whose VAE has room for a job of this size beside so many running ones only."""

    def __init__(self, tokens, beside):
        super().__init__(Budget(batch_tokens=400, resident_tokens=100_000))
        self.tokens, self.beside, self.evaluations = tokens, beside, 0

    def tick(self):
        plan = self.scheduler.next(self.now)
        running = sum(j.stage is Stage.RUNNING for j in self.scheduler._jobs.values())
        no_room = {j.id for j in plan.decode if j.tokens == self.tokens and running > self.beside}
        self.now += 1.0
        self.evaluations += sum(j.tokens == self.tokens for j in plan.evaluate)
        outcome = Outcome(
            advanced={j.id: Advance(1, j.done + 1 == j.evaluations) for j in plan.evaluate},
            pictures={j.id: object() for j in plan.decode if j.id not in no_room},
            no_room=no_room,
            evaluated_s=1.0,
        )
        changes = self.scheduler.settle(plan, outcome)
        self.ended += [c.job.id for c in changes if c.picture is not None]
        assert not any(c.error for c in changes)
        return plan


def test_a_job_that_hardly_fits_ends_in_a_stream_of_others_and_is_drawn_once():
    bench = Cramped(tokens=120, beside=2)
    (large,) = bench.add(job(10, tokens=120))
    for _ in range(400):
        bench.add(job(3, tokens=80))
        bench.tick()

    assert large.id in bench.ended
    assert bench.evaluations == 10


@pytest.mark.parametrize("count", [4, 8, 16])
def test_many_jobs_that_hardly_fit_are_each_drawn_once(count):
    bench = Cramped(tokens=100, beside=1)
    bench.add(*(job(4, tokens=100) for _ in range(count)))
    bench.run()

    assert len(bench.ended) == count
    assert bench.evaluations == 4 * count


def test_a_failed_job_ends_once_and_alone():
    bench = Bench()
    bad, good = bench.add(job(), job())
    plan = bench.scheduler.next(0)
    outcome = Outcome(
        advanced={good.id: Advance(1, False)}, failed={bad.id: EngineError("boom")}, evaluated_s=1
    )
    errors = [c.job.id for c in bench.scheduler.settle(plan, outcome) if c.error]
    bench.run()

    assert errors == [bad.id]
    assert bench.ended == [good.id]


@pytest.mark.parametrize("seed", range(30))
def test_every_job_ends_exactly_once_in_any_order_of_arrival(seed):
    rng = random.Random(seed)
    bench = Bench(Budget(batch_tokens=rng.choice([100, 300, 900]), resident_tokens=1500))
    alive, cancelled = [], set()
    for _ in range(60):
        if rng.random() < 0.6:
            alive += bench.add(
                job(
                    rng.randint(1, 12),
                    rng.choice([80, 100, 250]),
                    owner=rng.choice("abc"),
                    priority=rng.randint(0, 2),
                    rows=rng.randint(1, 2),
                )
            )
        if alive and rng.random() < 0.1:
            victim = rng.choice(alive)
            if victim.stage is not Stage.ENDED:
                bench.scheduler.cancel(victim.request.id)
                cancelled.add(victim.id)
        plan = bench.tick()
        tokens = sum(j.tokens for j in plan.evaluate)
        assert len(plan.evaluate) <= 1 or tokens <= bench.scheduler.batch_tokens
    bench.run()

    assert sorted(bench.ended) == sorted(j.id for j in alive if j.id not in cancelled)
