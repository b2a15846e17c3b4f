"""What is accepted is on disk, comes back after any death, and ends once."""

import asyncio
import time
from dataclasses import replace

import pytest
from sqlalchemy import delete, update

from fluxline.ability import check_all
from fluxline.approximation import approximation_of
from fluxline.errors import DeadlineExceeded, InvalidParams, NotReady, QueueFull, StorageError
from fluxline.jobs import JobState, Limits, NewJob
from fluxline.jobs.table import jobs, sources
from fluxline.request import Failed, ImageReady, SamplingParams
from fluxline.service import Caller, Terms, record
from fluxline.service.record import result_of
from tests.service.conftest import (
    STORED,
    ScriptedReplica,
    drawn,
    finished,
    picture,
    request,
    until,
    vanished,
)


async def test_a_job_is_on_disk_when_its_ticket_is_given(service, store):
    await service.submit(request(), STORED, Caller(owner="ann", priority=2))
    row = store.get("a")
    assert (row.owner, row.priority, row.is_attended, row.holder) == ("ann", 2, False, "local")


async def test_a_stored_job_ends_with_pictures_that_can_be_fetched(
    service, replica, store, pictures
):
    await service.submit(request(n=2), STORED)
    await drawn(replica, "a", 2)
    row = await finished(store, "a")
    found = result_of(row.result)
    assert row.state == JobState.DONE
    assert [(one.index, one.seed) for one in found] == [(0, 1), (1, 2)]
    assert await pictures.get(found[1].key) == picture("a", 1).image.data


async def test_pictures_of_a_caller_who_waits_are_not_stored(service, replica, store):
    drawing = asyncio.create_task(service.draw(request()))
    await drawn(replica, "a")
    _, (image,) = await drawing
    assert image.stored is None
    assert result_of(store.get("a").result)[0].key is None


async def test_after_a_kill_the_stored_job_is_drawn_again_and_the_attended_is_not(
    opened, replica, store
):
    killed = await opened(queue_limit=9)
    await killed.submit(request("stored"), STORED)
    await killed.submit(request("attended"))
    for name in ("stored", "attended"):
        await replica.given(name)
    await vanished(killed)

    fresh = ScriptedReplica()
    again = await opened(fresh)
    await drawn(fresh, "stored")
    row = await finished(store, "stored")
    assert (row.state, row.attempts) == (JobState.DONE, 2)
    assert fresh.requests["stored"].seed == replica.requests["stored"].seed
    assert store.get("attended").state == JobState.CANCELLED
    await again.close()


PICTURES = {"source": b"canvas", "mask": b"mask", "references": (b"one", b"two")}


@pytest.mark.parametrize(
    "files", [PICTURES, {"source": b"canvas"}, {"references": (b"one", b"two")}], ids=list
)
async def test_after_a_kill_a_job_is_drawn_from_its_pictures_to_the_last_byte(
    files, opened, replica, store
):
    killed = await opened()
    await killed.submit(request(**files), STORED)
    await replica.given("a")
    await vanished(killed)

    fresh = ScriptedReplica()
    again = await opened(fresh)
    await fresh.given("a")
    for found in (replica.requests["a"], fresh.requests["a"]):
        assert {name: getattr(found, name) for name in files} == files
    assert "canvas" not in store.get("a").request
    await drawn(fresh, "a")
    await finished(store, "a")
    assert store.source("a") is None
    await again.close()


async def test_a_job_whose_pictures_are_gone_says_so(opened, replica, store):
    killed = await opened(window=0)
    await killed.submit(request(**PICTURES), STORED)
    await vanished(killed)
    with store._database.writing() as db:
        db.execute(delete(sources))

    again = await opened(ScriptedReplica())
    row = await finished(store, "a")
    assert (row.state, "not kept any more" in row.error_message) == (JobState.FAILED, True)
    await again.close()


@pytest.mark.parametrize(
    "other",
    [{"mask": b"x"}, {"references": (b"one",)}, {"references": (b"onet", b"wo")}, {"source": b""}],
    ids=str,
)
def test_other_pictures_are_another_request(other):
    asked = request(**PICTURES)
    assert record.fingerprint(asked) == record.fingerprint(request(**PICTURES))
    assert record.fingerprint(asked) != record.fingerprint(replace(asked, **other))


@pytest.mark.parametrize("jump_s", [86_400, -86_400])
async def test_a_clock_that_jumps_takes_no_job_from_who_draws_it(
    jump_s, opened, replica, store, monkeypatch
):
    monkeypatch.setattr("fluxline.service.dispatcher.LEASE_S", 1.5)
    service, end_leases, rounds = await opened(), store.end_expired_leases, []

    def counted():
        rounds.append(end_leases())
        return rounds[-1]

    store.end_expired_leases = counted
    await service.submit(request(), STORED)
    await replica.given("a")
    store._clock = lambda: time.time() + jump_s
    await until(lambda: rounds)  # leases were renewed, and those that ran out are ended
    await drawn(replica, "a")
    row = await finished(store, "a")
    await service.close()

    assert (row.state, row.attempts) == (JobState.DONE, 1)


async def test_what_the_old_server_says_late_changes_nothing(opened, replica, store):
    old = await opened()
    await old.submit(request(), STORED)
    await replica.given("a")
    old._dispatcher.stop_claiming()  # else either may be the first to claim it again
    await old._clerk.do(lambda: None)
    fresh = ScriptedReplica()
    new = await opened(fresh)
    await fresh.given("a")
    await drawn(replica, "a")
    await asyncio.sleep(0.02)
    assert store.get("a").state == JobState.RUNNING
    await drawn(fresh, "a")
    assert (await finished(store, "a")).attempts == 2
    await old.close()
    await new.close()


async def test_a_key_asked_again_gets_the_same_job_and_its_pictures(service, replica, store):
    keyed = Terms(idempotency_key="k", fingerprint="f")
    first = asyncio.create_task(service.draw(request("a"), keyed))
    await replica.given("a")
    second = asyncio.create_task(service.draw(request("b"), keyed))
    await until(lambda: service._register.get("a").followers == 2)
    await drawn(replica, "a")
    one, two = await asyncio.gather(first, second)
    service._register.forget(service._register.get("a"))  # as it will be in a while
    three = await service.draw(request("c"), keyed)

    assert one.images[0].data == two.images[0].data == three.images[0].data
    assert [one.job_id, two.job_id, three.job_id] == ["a", "a", "a"]
    assert (list(replica.requests), store.get("b"), store.get("c")) == (["a"], None, None)


async def test_a_key_used_for_something_else_is_refused(service):
    await service.submit(request("a"), Terms(idempotency_key="k", fingerprint="f"))
    with pytest.raises(InvalidParams, match="Idempotency-Key"):
        await service.submit(request("b"), Terms(idempotency_key="k", fingerprint="g"))


async def test_a_clients_own_retry_follows_what_runs_and_a_failed_one_is_tried_again(
    service, replica
):
    first = asyncio.create_task(service.draw(request("a"), Terms(fingerprint="f")))
    await replica.given("a")
    retry = asyncio.create_task(service.draw(request("b"), Terms(fingerprint="f", is_retry=True)))
    await until(lambda: service._register.get("a").followers == 2)
    replica.publish["a"](Failed("a", "out_of_memory", "no"))
    await asyncio.gather(first, retry, return_exceptions=True)
    assert list(replica.requests) == ["a"]

    third = asyncio.create_task(service.draw(request("c"), Terms(fingerprint="f", is_retry=True)))
    await drawn(replica, "c")
    assert (await third).job_id == "c"


@pytest.mark.parametrize("terms", [{"patience_s": 0.05}, {"may_retry": True}])
async def test_who_hangs_up_out_of_impatience_is_expected_back(terms, service, replica):
    terms = Terms(fingerprint="f", **terms)
    first = asyncio.create_task(service.draw(request("a"), terms))
    await replica.given("a")
    await asyncio.sleep(0.06)
    first.cancel()
    await asyncio.sleep(0.02)
    assert replica.cancelled == []

    again = Terms(fingerprint="f", patience_s=9, is_retry=True)
    second = asyncio.create_task(service.draw(request("b"), again))
    await until(lambda: service._register.get("a").followers)
    await drawn(replica, "a")
    assert (await second).job_id == "a"


async def test_who_leaves_while_the_row_is_written_is_not_drawn_for(opened, replica, store):
    service, accept = await opened(), store.accept

    def slow(*words):
        time.sleep(0.05)
        return accept(*words)

    store.accept = slow
    leaving = asyncio.create_task(service.draw(request()))
    await asyncio.sleep(0.01)
    leaving.cancel()
    await until(lambda: store.get("a"))
    assert (await finished(store, "a")).state == JobState.CANCELLED
    await service.close()


async def test_what_cannot_be_done_in_time_is_refused_with_the_estimate(service):
    pace = service._register.pace
    pace._seconds, pace._cost = 8.0, 64 * 64 * 4.0  # a picture takes 8 s
    with pytest.raises(DeadlineExceeded, match="about 8 s; you wait 5 s"):
        await service.submit(request(), Terms(deadline_s=5))
    await service.submit(request(), Terms(deadline_s=10))


async def test_what_waited_beyond_its_deadline_is_not_drawn(opened, replica, store):
    service = await opened(window=1)
    await service.submit(request("a"), STORED)
    await replica.given("a")
    await service.submit(request("b"), Terms(is_attended=False, deadline_s=0.01))
    await asyncio.sleep(0.02)
    await drawn(replica, "a")
    row = await finished(store, "b")
    assert (row.state, row.error_code) == (JobState.FAILED, "deadline_exceeded")
    assert list(replica.requests) == ["a"]
    await service.close()


async def test_a_row_that_cannot_be_read_fails_by_itself(opened, replica, store, database):
    service = await opened()
    await service.submit(request("a"), STORED)
    await drawn(replica, "a")
    await finished(store, "a")
    await service.close()
    with database.writing() as db:
        db.execute(update(jobs).values(state=JobState.QUEUED, request="{}"))

    again = await opened(ScriptedReplica())
    row = await finished(store, "a")
    await again.close()

    assert (row.state, row.error_code) == (JobState.FAILED, "internal_error")
    assert "written by another" in row.error_message


async def test_a_wrong_size_is_refused_before_anything_is_written(service, store):
    with pytest.raises(InvalidParams, match="width"):
        await service.submit(request(params=SamplingParams(width=4096)), STORED)
    assert store.get("a") is None


async def test_cancelling_ends_a_job_wherever_it_is(opened, replica, store):
    service = await opened(window=1, queue_limit=9)
    await service.submit(request("runs"), STORED)
    await replica.given("runs")
    waits = await service.submit(request("waits"), STORED)
    await service.cancel("waits")
    await service.cancel("runs")
    assert (await finished(store, "runs")).state == JobState.CANCELLED
    assert store.get("waits").state == JobState.CANCELLED
    assert [type(event).__name__ async for event in waits] == ["Queued", "CancelledEvent"]
    assert await service.cancel("nobody") is None
    assert await service.cancel("runs", owner="another") is None
    await service.close()


async def test_a_retried_job_is_drawn_from_its_seed(service, replica, store):
    await service.submit(request(), STORED)
    (await replica.given("a"))(Failed("a", "out_of_memory", "no"))
    assert (await finished(store, "a")).error_code == "out_of_memory"
    del replica.publish["a"]
    await service.retry("a")
    await drawn(replica, "a")
    assert (await finished(store, "a")).state == JobState.DONE


async def test_who_comes_late_hears_all_and_who_was_there_hears_the_rest(service, replica, store):
    await service.submit(request(), STORED)
    await drawn(replica, "a")
    row = await finished(store, "a")
    late = await service.follow(row)
    heard = [event async for event in late]
    rest = [event async for event in await service.follow(row, after=2)]
    nothing = [event async for event in await service.follow(row, after=4)]
    service._register.forget(service._register.get("a"))
    told = [event async for event in await service.follow(row, after=9)]

    assert [type(event).__name__ for event in heard] == ["Queued", "Started", "ImageReady", "Done"]
    assert (rest, nothing) == (heard[2:], [])
    assert [event.image.seed for event in told if isinstance(event, ImageReady)] == [1]


class Shelf:
    """A store of pictures that is away for a while."""

    def __init__(self, pictures):
        self.pictures, self.is_away, self.tries = pictures, True, 0

    async def put(self, data, format):
        self.tries += 1
        if self.is_away:
            raise StorageError("away")
        return await self.pictures.put(data, format)

    async def get(self, key):
        return await self.pictures.get(key)


async def test_a_picture_waits_for_a_store_that_is_away_unless_its_caller_waits(
    opened, replica, store, pictures, monkeypatch
):
    monkeypatch.setattr("fluxline.service.dispatcher.RETRY_S", (0.01,))
    shelf = Shelf(pictures)
    service = await opened(pictures=shelf, queue_limit=9)
    await service.submit(request("patient"), STORED)
    waiting = asyncio.create_task(service.draw(request("waiting"), Terms(keeps=True)))
    for name in ("patient", "waiting"):
        await drawn(replica, name)
    with pytest.raises(StorageError):
        await waiting
    assert store.get("patient").state == JobState.RUNNING
    shelf.is_away = False
    assert (await finished(store, "patient")).state == JobState.DONE
    await service.close()


async def test_no_more_is_accepted_for_a_store_that_is_away_when_the_spool_is_full(
    opened, replica, pictures, monkeypatch
):
    monkeypatch.setattr("fluxline.service.dispatcher.SPOOL_BYTES", 1)
    shelf = Shelf(pictures)
    service = await opened(pictures=shelf, queue_limit=9)
    await service.submit(request("a"), STORED)
    await drawn(replica, "a")
    await until(lambda: shelf.tries)
    with pytest.raises(NotReady, match="store of pictures"):
        await service.submit(request("b"), STORED)
    await service.submit(request("c"))
    shelf.is_away = False
    await service.close()


async def test_an_end_that_cannot_be_written_is_written_later_and_told_then(
    opened, replica, store, monkeypatch
):
    monkeypatch.setattr("fluxline.service.dispatcher.RETRY_S", (0.01,))
    service, finish, tries = await opened(), store.finish, []

    def late(*words):
        tries.append(words)
        if len(tries) < 3:
            raise NotReady("the job database cannot be written now", retry_after_s=5)
        return finish(*words)

    store.finish = late
    drawing = asyncio.create_task(service.draw(request()))
    await drawn(replica, "a")
    assert len((await drawing).images) == 1
    assert (len(tries), store.get("a").state) == (3, JobState.DONE)
    await service.close()


async def test_stopping_turns_away_who_waits_and_keeps_what_is_stored(opened, replica, store):
    service = await opened(window=1, queue_limit=9)
    await service.submit(request("runs"), STORED)
    await replica.given("runs")
    await service.submit(request("stored"), STORED)
    attended = asyncio.create_task(service.draw(request("attended")))
    await until(lambda: store.get("attended"))
    draining = asyncio.create_task(service.drain(5))
    with pytest.raises(Exception, match="shutting down"):
        await attended
    await drawn(replica, "runs")
    await draining
    await service.close()

    states = [store.get(name).state for name in ("runs", "stored", "attended")]
    assert states == [JobState.DONE, JobState.QUEUED, JobState.CANCELLED]


async def test_what_a_stopped_replica_held_goes_back_with_its_attempt(opened, replica, store):
    service = await opened()
    await service.submit(request(), STORED)
    await replica.given("a")
    await service.drain(0.01)
    replica.publish["a"](Failed("a", "overloaded", "the server is shutting down"))
    await service.close()

    row = store.get("a")
    assert (row.state, row.attempts) == (JobState.QUEUED, 0)


async def test_a_row_that_cannot_be_read_fails_and_stops_nothing_else(opened, replica, store):
    for name, text in (("odd", "{}"), ("later", record.request_text(request("later")))):
        store.accept(
            NewJob(id=name, request=text, fingerprint=name, profile="fake"), Limits(waiting=9)
        )
    service = await opened(queue_limit=9)
    await drawn(replica, "later")

    assert (await finished(store, "later")).state == JobState.DONE
    assert "another" in (await finished(store, "odd")).error_message
    await service.close()


async def test_a_fault_of_ours_ends_no_loop(opened, replica, store):
    claim, faults = store.claim, [RuntimeError("once")]

    def faulty(*words, **more):
        if faults:
            raise faults.pop()
        return claim(*words, **more)

    store.claim = faulty
    service = await opened()
    await service.submit(request(), STORED)
    await drawn(replica, "a")

    assert (await finished(store, "a")).state == JobState.DONE
    assert faults == []
    await service.close()


async def test_a_store_that_is_away_holds_up_nobody_who_does_not_need_it(
    opened, replica, store, pictures, monkeypatch
):
    monkeypatch.setattr("fluxline.service.dispatcher.RETRY_S", (0.01,))
    shelf = Shelf(pictures)
    service = await opened(pictures=shelf, queue_limit=9, window=1)
    await service.submit(request("stored"), STORED)
    await drawn(replica, "stored")
    drawing = asyncio.create_task(service.draw(request("at once")))
    await drawn(replica, "at once")
    await drawing
    assert store.get("stored").state == JobState.RUNNING

    await service.cancel("stored")
    assert (await finished(store, "stored")).state == JobState.CANCELLED
    await service.close()


async def test_who_asks_again_after_hanging_up_gets_a_job_that_is_not_being_cancelled(
    service, replica
):
    first = asyncio.create_task(service.draw(request("a"), Terms(fingerprint="f")))
    await replica.given("a")
    replica.cancel = replica.cancelled.append  # it takes an evaluation until it is
    first.cancel()
    await until(lambda: replica.cancelled)
    again = asyncio.create_task(service.draw(request("b"), Terms(fingerprint="f", is_retry=True)))
    await drawn(replica, "b")

    assert replica.cancelled == ["a"]
    assert (await again).job_id == "b"


async def test_a_known_key_is_answered_by_a_full_queue_and_costs_nothing(opened, replica):
    service = await opened(queue_limit=1)
    ann, keyed = Caller(owner="ann", rate=1.0), Terms(idempotency_key="k", fingerprint="f")
    first = await service.submit(request("a"), keyed, ann)
    again = await service.submit(request("b"), keyed, ann)
    with pytest.raises(QueueFull):
        await service.submit(request("c"), Terms(), ann)

    assert again.job_id == first.job_id
    await service.close()


async def test_two_servers_of_one_database_draw_each_job_once_and_both_tell_its_end(opened, store):
    here, there = ScriptedReplica(), ScriptedReplica()
    here.state = "restarting"
    near = await opened(replica=here, holder="near", queue_limit=9)
    far = await opened(replica=there, holder="far", queue_limit=9)
    keyed = asyncio.create_task(near.draw(request("keyed"), Terms(idempotency_key="k")))
    alone = asyncio.create_task(near.draw(request("alone")))
    await drawn(there, "keyed")

    assert len((await keyed).images) == 1
    assert list(there.requests) == ["keyed"]
    here.state = "ready"
    near._dispatcher.wake()
    await drawn(here, "alone")
    assert len((await alone).images) == 1
    await near.close()
    await far.close()


async def test_a_lease_that_was_lost_and_claimed_again_here_is_drawn_on(opened, replica, store):
    service = await opened()
    drawing = asyncio.create_task(service.draw(request("a"), Terms(idempotency_key="k")))
    await replica.given("a")
    store.end_leases_of("local")  # as if this server had been silent for long
    service._dispatcher.wake()
    await until(lambda: store.get("a").fence == 2)
    await drawn(replica, "a")

    assert len((await drawing).images) == 1
    assert (store.get("a").state, list(replica.requests)) == (JobState.DONE, ["a"])
    await service.close()


async def test_who_follows_a_stored_job_is_not_told_that_it_failed_when_the_server_stops(
    opened, replica, store
):
    service = await opened()
    ticket = await service.submit(request(), STORED)
    await replica.given("a")
    await service.drain(0.01)
    replica.publish["a"](Failed("a", "overloaded", "the server is shutting down"))
    await service.close()

    with pytest.raises(NotReady, match="goes on"):
        _ = [event async for event in ticket]
    assert "failed" not in service.meter.text().decode()


# ---- a server that is started again with other ranks


class Ranks(ScriptedReplica):
    """So many that draw together, and refuse what they cannot, as an engine does."""

    def __init__(self, count, *modes):
        super().__init__()
        self.models = (replace(self.models[0], ranks=count, approximations=modes),)

    def submit(self, request, publish):
        try:
            check_all(request, self.models[0])
        except InvalidParams as refusal:
            publish(refusal)
        else:
            super().submit(request, publish)


@pytest.fixture
async def near(opened):
    """A job that two ranks were to approximate, and whose server was killed before they began."""
    killed = await opened(Ranks(2, "piflux"), window=0)
    params = SamplingParams(steps=8, parallel=approximation_of("piflux"))
    await killed.submit(request("near", params=params), STORED)
    await vanished(killed)
    return params.parallel


@pytest.mark.parametrize(
    ("now", "words"),
    [
        ([1], "parallel piflux takes several ranks; fake is drawn by one"),
        ([2, "pipefusion"], "cannot be drawn by piflux here; there is pipefusion"),
        ([4], "cannot be drawn by piflux here; there is none"),
        ([4, "piflux"], "piflux on 4 ranks wants 16 evaluations or more; got 8"),
    ],
    ids=str,
)
async def test_what_other_ranks_cannot_approximate_fails_in_these_words_and_is_never_drawn_exactly(
    now, words, near, opened, store
):
    ranks = Ranks(*now)
    service = await opened(ranks)
    row = await finished(store, "near")
    await service.close()

    assert (row.state, row.error_code) == (JobState.FAILED, InvalidParams.code)
    assert words in row.error_message
    assert ranks.requests == {}


async def test_it_is_approximated_once_there_are_ranks_again_that_can(near, opened, store):
    alone = await opened(Ranks(1))
    assert "leave parallel out" in (await finished(store, "near")).error_message
    await alone.close()

    ranks = Ranks(2, "piflux")
    service = await opened(ranks)
    await service.retry("near")
    await drawn(ranks, "near")

    assert (await finished(store, "near")).state == JobState.DONE
    assert ranks.requests["near"].params.parallel == near
    await service.close()
