"""The durable queue: accepted once, claimed in turn, finished once, whoever dies."""

import multiprocessing
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from fluxline.errors import InvalidParams, QueueFull
from fluxline.jobs import Database, JobState, JobStore, Limits, NewJob
from fluxline.jobs import store as storing
from fluxline.jobs.store import FIRST_LEASE_S, MAX_ATTEMPTS

WIDE = Limits(waiting=1000)


@pytest.fixture
def store(database, clock):
    return JobStore(database, clock=clock)


def job(name: str, **fields) -> NewJob:
    return NewJob(**{"id": name, "request": "{}", "fingerprint": name, **fields})


def accept(store: JobStore, *names: str, **fields) -> None:
    for name in names:
        store.accept(job(name, **fields), WIDE)


def claimed(store: JobStore, limit: int = 99, holder: str = "a") -> list[str]:
    return [row.id for row in store.claim(holder, profiles=[""], lease_s=10, limit=limit)]


def test_an_accepted_job_is_there_after_the_store_is_opened_again(opened, store, clock):
    accept(store, "x", owner="ann", cost=2.5, priority=3, deadline=1100.0)
    found = JobStore(opened(), clock=clock).get("x")
    assert (found.owner, found.cost, found.priority) == ("ann", 2.5, 3)
    assert (found.state, found.created_at, found.deadline) == (JobState.QUEUED, 1000.0, 1100.0)


def test_the_picture_a_job_starts_from_is_kept_until_it_is_done(opened, store, clock):
    accept(store, "x", source=bytes(range(256)))
    accept(store, "y")
    assert JobStore(opened(), clock=clock).source("x") == bytes(range(256))
    assert store.source("y") is None
    store.finish(store.claim("a", profiles=[""], lease_s=10, limit=1)[0].token, "[]")
    assert store.source("x") is None


def test_a_job_that_failed_keeps_its_picture_until_it_is_forgotten(store, clock):
    accept(store, "x", source=b"picture")
    (claim,) = store.claim("a", profiles=[""], lease_s=10, limit=2)
    store.fail(claim.token, "internal_error", "no")
    assert store.source("x") == b"picture"
    clock.now += 100
    store.forget(finished_before=clock.now, limit=10)
    assert store.source("x") is None


def test_of_a_job_that_nobody_wants_no_picture_is_kept(store):
    accept(store, "waits", "runs", source=b"picture")
    (claim,) = store.claim("a", profiles=[""], lease_s=10, limit=1)
    store.drop(claim.token)
    store.cancel("waits")
    store.cancel("runs")
    assert (store.source("waits"), store.source("runs")) == (None, None)


def test_a_claimed_job_is_finished_with_its_result(store, clock):
    accept(store, "x")
    (claim,) = store.claim("a", profiles=[""], lease_s=10, limit=5)
    clock.now += 3
    assert store.finish(claim.token, "[1]")
    found = store.get("x")
    assert (found.state, found.result, found.started_at, found.finished_at) == (
        JobState.DONE,
        "[1]",
        1000.0,
        1003.0,
    )
    assert found.is_over


def test_a_job_is_claimed_by_one_holder_only(store):
    accept(store, *map(str, range(40)))
    with ThreadPoolExecutor(4) as pool:
        taken = list(pool.map(lambda k: claimed(store, 10, f"h{k}"), range(4)))
    assert sorted((name for names in taken for name in names), key=int) == [
        str(k) for k in range(40)
    ]


def test_servers_that_claim_at_once_take_all_there_is_and_none_twice(store, opened):
    accept(store, *map(str, range(60)))
    stores = [JobStore(opened()) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        taken = list(pool.map(lambda k: claimed(stores[k], 20, f"h{k}"), range(3)))
    assert [len(names) for names in taken] == [20, 20, 20]
    assert len({name for names in taken for name in names}) == 60


def test_servers_that_accept_at_once_keep_the_limit_they_have_together(store, opened):
    stores = [store, JobStore(opened())]

    def is_accepted(k: int) -> bool:
        try:
            stores[k % 2].accept(job(f"j{k}"), Limits(waiting=5))
        except QueueFull:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(is_accepted, range(24))) == 5


def test_an_end_whose_answer_was_lost_is_written_again_and_is_one_end(store):
    accept(store, "x", "y", "z")
    x, y, z = store.claim("a", profiles=[""], lease_s=10, limit=3)
    for _ in range(2):
        assert store.finish(x.token, "[1]")
        assert store.fail(y.token, "out_of_memory", "no")
        assert store.drop(z.token)
    assert not store.finish(x.token, "[2]")


@pytest.mark.parametrize("name", ["", "\0", "x\0y", "é", "x" * 1000])
def test_what_is_no_id_of_a_job_finds_none(store, name):
    assert (store.get(name), store.cancel(name), store.retry(name, WIDE)) == (None, None, None)


def test_a_lost_lease_goes_to_the_next_and_the_old_fence_writes_nothing(store, clock):
    accept(store, "x")
    (old,) = store.claim("a", profiles=[""], lease_s=10, limit=1)
    clock.now += 11
    assert [row.id for row in store.end_expired_leases()] == ["x"]
    (new,) = store.claim("b", profiles=[""], lease_s=10, limit=1)
    assert store.renew("a", [old.token], lease_s=10) == {}
    assert not store.finish(old.token, "late")
    assert not store.fail(old.token, "x", "late")
    assert not store.put_back(old.token)
    assert store.finish(new.token, "right")
    assert not store.finish(new.token, "twice")
    assert store.get("x").result == "right"


def test_a_renewed_lease_is_not_lost(store, clock):
    accept(store, "x")
    (claim,) = store.claim("a", profiles=[""], lease_s=10, limit=1)
    clock.now += 9
    assert store.renew("a", [claim.token], lease_s=10) == {"x": False}
    clock.now += 9
    assert store.end_expired_leases() == []


def test_a_job_that_was_lost_again_and_again_fails_and_says_so(store, clock):
    accept(store, "x")
    for _ in range(MAX_ATTEMPTS):
        assert claimed(store) == ["x"]
        clock.now += 11
        store.end_expired_leases()
    found = store.get("x")
    assert (found.state, found.error_code) == (JobState.FAILED, "worker_died")
    assert "10 times" in found.error_message


def test_a_job_given_back_loses_no_attempt(store):
    accept(store, "x")
    for _ in range(5):
        (claim,) = store.claim("a", profiles=[""], lease_s=10, limit=1)
        assert store.put_back(claim.token)
    assert store.get("x").attempts == 0


def test_what_a_holder_that_is_gone_held_is_queued_at_once(store):
    accept(store, "x", "y")
    assert claimed(store, 1, "gone") == ["x"]
    assert claimed(store, 1, "here") == ["y"]
    assert [row.id for row in store.end_leases_of("gone")] == ["x"]
    assert store.get("y").state == JobState.RUNNING


def test_a_job_whose_caller_waited_on_a_lost_connection_is_not_drawn_again(store):
    accept(store, "unkeyed", is_attended=True, holder="a")
    accept(store, "keyed", is_attended=True, idempotency_key="k")
    claimed(store)
    store.end_leases_of("a")
    assert store.get("unkeyed").state == JobState.CANCELLED
    assert store.get("keyed").state == JobState.QUEUED


def test_a_waiting_job_whose_caller_was_at_a_server_that_is_gone_is_cancelled(store):
    accept(store, "left", is_attended=True, holder="gone")
    accept(store, "stored", holder="gone")
    accept(store, "elsewhere", is_attended=True, holder="here")
    store.end_leases_of("gone")
    states = [store.get(name).state for name in ("left", "stored", "elsewhere")]
    assert states == [JobState.CANCELLED, JobState.QUEUED, JobState.QUEUED]


def test_the_same_key_of_the_same_owner_is_the_same_job(store):
    first, is_new = store.accept(job("x", owner="ann", idempotency_key="k"), WIDE)
    assert is_new
    again, is_new = store.accept(job("y", owner="ann", idempotency_key="k", fingerprint="x"), WIDE)
    assert (again, is_new) == (first, False)
    other, is_new = store.accept(job("z", owner="bob", idempotency_key="k"), WIDE)
    assert (other.id, is_new) == ("z", True)


def test_a_key_used_for_something_else_is_refused(store):
    accept(store, "x", idempotency_key="k")
    with pytest.raises(InvalidParams, match="another request"):
        accept(store, "y", idempotency_key="k")


def test_the_same_key_at_once_makes_one_job(store):
    def submit(k: int) -> str:
        new = job(f"j{k}", idempotency_key="k", fingerprint="same")
        return store.accept(new, WIDE)[0].id

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(submit, range(16)))) == 1


def test_a_full_queue_refuses_and_writes_nothing(store):
    accept(store, "x", "y")
    with pytest.raises(QueueFull, match="2 requests are waiting; at most 2 may"):
        store.accept(job("z"), Limits(waiting=2))
    assert store.get("z") is None
    claimed(store, 1)
    store.accept(job("z"), Limits(waiting=2))


def test_a_queue_holds_so_much_work_but_one_job_always(store):
    limits = Limits(waiting=9, cost=10)
    store.accept(job("huge", cost=99), limits)
    with pytest.raises(QueueFull, match="as much work"):
        store.accept(job("small", cost=1), limits)


def test_an_owner_has_so_many_open_jobs_and_others_are_not_hindered(store):
    limits = Limits(waiting=9, of_owner=1)
    store.accept(job("x", owner="ann"), limits)
    with pytest.raises(QueueFull, match="of this key"):
        store.accept(job("y", owner="ann"), limits)
    store.accept(job("z", owner="bob"), limits)


def test_claims_go_by_priority_then_in_turn_between_owners_then_by_age(store, clock):
    for name in ("a1", "a2", "a3", "b1"):
        accept(store, name, owner=name[0])
        clock.now += 1
    accept(store, "urgent", owner="a", priority=5)
    assert claimed(store, 3) == ["urgent", "b1", "a1"]
    assert claimed(store, 9) == ["a2", "a3"]


def test_cancelling_ends_what_waits_and_asks_who_runs(store):
    accept(store, "x", "y")
    (claim,) = store.claim("a", profiles=[""], lease_s=10, limit=1)
    assert store.cancel("y").state == JobState.CANCELLED
    assert store.cancel("x").state == JobState.RUNNING
    assert store.renew("a", [claim.token], lease_s=10) == {"x": True}
    assert store.drop(claim.token)
    assert store.get("x").state == JobState.CANCELLED
    assert store.cancel("nobody") is None


def test_a_cancelled_job_whose_holder_dies_is_not_drawn_again(store):
    accept(store, "x")
    claimed(store)
    store.cancel("x")
    store.end_leases_of("a")
    assert store.get("x").state == JobState.CANCELLED


def test_a_cancelled_job_that_also_had_its_attempts_is_cancelled(store, clock):
    accept(store, "x")
    for _ in range(3):
        claimed(store)
        clock.now += 11
        if store.get("x").attempts == 3:
            store.cancel("x")
        store.end_expired_leases()
    assert store.get("x").state == JobState.CANCELLED


def test_a_failed_job_can_be_tried_again(store):
    accept(store, "x")
    (claim,) = store.claim("a", profiles=[""], lease_s=10, limit=1)
    store.fail(claim.token, "out_of_memory", "no memory")
    assert store.get("x").error_code == "out_of_memory"
    again = store.retry("x", WIDE)
    assert (again.state, again.attempts, again.error_code) == (JobState.QUEUED, 0, None)
    assert claimed(store) == ["x"]


def test_jobs_of_others_are_neither_seen_nor_touched(store):
    accept(store, "x", owner="ann")
    assert store.get("x", owner="bob") is None
    assert store.cancel("x", owner="bob") is None
    assert store.retry("x", WIDE, owner="bob") is None
    assert store.recent(owner="bob") == []
    assert store.get("x", owner="ann").state == JobState.QUEUED


def test_recent_jobs_come_newest_first_and_page_by_page(store, clock):
    for name in "abcd":
        accept(store, name)
        clock.now += 1
    first = store.recent(limit=2)
    assert [row.id for row in first] == ["d", "c"]
    rest = store.recent(limit=9, before=first[-1].created_at)
    assert [row.id for row in rest] == ["b", "a"]
    store.cancel("b")
    assert [row.id for row in store.recent(states=[JobState.CANCELLED])] == ["b"]


def test_counts_are_read_off_the_table(store):
    accept(store, "x", "y")
    claimed(store, 1)
    assert store.counts() == {JobState.QUEUED: 1, JobState.RUNNING: 1}


def test_old_jobs_are_forgotten_a_few_at_a_time_and_open_ones_never(store, clock):
    accept(store, "old", "older", "open")
    store.cancel("old")
    store.cancel("older")
    clock.now += 100
    assert [store.forget(finished_before=clock.now, limit=1) for _ in range(3)] == [1, 1, 0]
    assert [row.id for row in store.recent()] == ["open"]


def test_what_somebody_waits_for_is_drawn_where_they_wait(store):
    accept(store, "mine", is_attended=True, holder="a")
    accept(store, "keyed", is_attended=True, holder="a", idempotency_key="k")
    assert claimed(store, holder="b") == ["keyed"]
    assert claimed(store, holder="a") == ["mine"]


def test_who_waits_at_a_server_that_says_nothing_any_more_is_let_go(store, clock):
    accept(store, "silent", is_attended=True, holder="a")
    accept(store, "alive", is_attended=True, holder="b")
    clock.now += FIRST_LEASE_S - 1
    store.renew("b", [], lease_s=10)
    clock.now += 2
    assert [row.id for row in store.end_expired_leases()] == ["silent"]
    assert store.get("silent").state == JobState.CANCELLED
    assert store.get("alive").state == JobState.QUEUED


def test_a_rank_orders_its_owners_jobs_and_nobody_elses(store):
    accept(store, "a1", owner="ann")
    accept(store, "a2", owner="ann", rank=10)
    accept(store, "b1", owner="bob", priority=1)
    accept(store, "c1", owner="cid")
    assert claimed(store) == ["b1", "a2", "c1", "a1"]


def test_a_retry_waits_for_nobody_and_has_no_deadline_and_keeps_to_the_limits(store, clock):
    accept(store, "x", is_attended=True, holder="a", deadline=clock.now + 1)
    store.cancel("x")
    with pytest.raises(QueueFull):
        store.retry("x", Limits(waiting=0))
    row = store.retry("x", WIDE)
    assert (row.state, row.is_attended, row.deadline) == (JobState.QUEUED, False, None)
    assert claimed(store, holder="b") == ["x"]


def test_what_is_given_back_and_not_wanted_is_cancelled(store):
    accept(store, "x")
    (claim,) = store.claim("a", profiles=[""], lease_s=10, limit=1)
    store.cancel("x")
    assert store.put_back(claim.token)
    assert store.get("x").state == JobState.CANCELLED


def _work(url: str) -> None:
    database = Database(url)
    store = JobStore(database)
    while claims := store.claim(f"p{os.getpid()}", profiles=[""], lease_s=0.5, limit=2):
        for claim in claims:
            store.finish(claim.token, str(os.getpid()))
    database.close()


def test_kill_9_of_holders_loses_no_job(database_url, database):
    store = JobStore(database)
    accept(store, *map(str, range(30)))
    context = multiprocessing.get_context("spawn")
    for k in range(4):
        process = context.Process(target=_work, args=(database_url,))
        process.start()
        if k < 3:
            threading.Event().wait(0.9 + 0.02 * k)
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        store.end_leases_of(f"p{process.pid}")
    _work(database_url)
    assert store.counts() == {JobState.DONE: 30}


def test_only_jobs_of_the_asked_profiles_are_claimed(store):
    for name, profile in (("a", "fp4"), ("b", "bf16"), ("c", "fp4")):
        accept(store, name, profile=profile)

    taken = store.claim("me", profiles=["bf16", "else"], lease_s=10, limit=9)
    rest = store.claim("me", profiles=["fp4"], lease_s=10, limit=9)

    assert [[row.id for row in rows] for rows in (taken, rest)] == [["b"], ["a", "c"]]


def test_a_profile_may_have_a_limit_of_its_own(store):
    limits = Limits(waiting=9, of_profile=1)
    store.accept(job("a", profile="fp4"), limits)
    with pytest.raises(QueueFull, match="1 requests wait for fp4; at most 1 may"):
        store.accept(job("b", profile="fp4"), limits)
    store.accept(job("c", profile="bf16"), limits)


def test_some_jobs_of_other_profiles_may_be_claimed_besides_in_the_same_turn(store):
    accept(store, "a1", "a2", owner="ann", profile="fp4")
    accept(store, "a3", "a4", owner="ann", profile="bf16")
    accept(store, "b1", owner="bob", profile="fp4")
    accept(store, "c1", owner="cid", profile="fp4", priority=1)

    besides = ["a2", "b1", "c1"]
    taken = store.claim("me", profiles=["bf16"], besides=besides, lease_s=10, limit=9)

    assert [row.id for row in taken] == ["c1", "a2", "b1", "a3", "a4"]
    assert store.get("a1").state == JobState.QUEUED


def test_what_waits_is_told_as_far_as_it_would_be_claimed_first(store):
    accept(store, "other", profile="bf16")
    accept(store, "elsewhere", profile="fp4", is_attended=True, holder="b")
    accept(store, "a1", "a2", "a3", owner="ann", profile="fp4")
    accept(store, "b1", owner="bob", profile="fp4")

    assert {row.id for row in store.waiting("a", "fp4", limit=2)} == {"a1", "b1"}
    assert {row.id for row in store.waiting("a", "fp4", limit=9)} == {"a1", "a2", "a3", "b1"}


def test_many_jobs_are_looked_up_some_at_a_time(store, monkeypatch):
    monkeypatch.setattr(storing, "AT_ONCE", 2)
    accept(store, "a", "b", "c", "d", "e")
    store.cancel("b")
    store.claim("me", profiles=[""], lease_s=10, limit=1)
    asked = ["a", "nobody", "b", "c", "e"]

    assert store.open_among(asked) == {"a", "c", "e"}
    assert {row.id for row in store.those(asked)} == {"a", "b", "c", "e"}
    assert (store.open_among([]), store.those([])) == (set(), [])


def test_what_waits_for_profiles_that_are_gone_is_found_and_adopted(store):
    accept(store, "kept", profile="fp4")
    accept(store, "gone", "drawn", profile="old")
    store.claim("a", profiles=[], besides=["drawn"], lease_s=10, limit=1)
    assert [row.id for row in store.strange(["fp4"])] == ["gone"]
    assert [row.id for row in store.waiting("a", "fp4", limit=9)] == ["kept"]

    for name in ("gone", "drawn"):
        store.adopt(name, "fp4")

    assert (store.get("gone").profile, store.get("drawn").profile) == ("fp4", "old")


def test_what_waits_can_be_given_up_and_what_is_drawn_cannot(store):
    accept(store, "a", "b")
    claimed(store, 1)

    assert [store.give_up(name, "late", "too late") for name in "ab"] == [False, True]
    row = store.get("b")
    assert (row.state, row.error_code, row.error_message) == (JobState.FAILED, "late", "too late")


def test_profiles_are_seen_while_somebody_draws_for_them_and_for_some_time(store, clock):
    accept(store, "a", profile="fp4")
    accept(store, "b", profile="bf16")
    began = clock()
    [row] = store.claim("me", profiles=["fp4"], lease_s=10, limit=1)
    assert store.begun_since(began + 99) == {"fp4"}

    store.finish(row.token, "[]")

    assert (store.begun_since(began), store.begun_since(began + 99)) == ({"fp4"}, set())
