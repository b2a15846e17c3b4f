"""Who is told: once a job is over, again until it is acknowledged, and after a retry anew."""

import pytest

from fluxline.jobs import JobStore, Limits, NewJob, NewWebhook, WebhookStore

WIDE = Limits(waiting=1000)
AGAIN_S = (10.0, 100.0)
HOOK = NewWebhook(url="https://there/", secret="s", base_url="http://here/")


@pytest.fixture
def store(database, clock):
    return JobStore(database, clock=clock)


@pytest.fixture
def webhooks(database, clock):
    return WebhookStore(database, clock=clock)


def accept(store, name="x"):
    store.accept(NewJob(id=name, request="{}", fingerprint=name, webhook=HOOK), WIDE)


def end(store):
    for row in store.claim("a", profiles=[""], lease_s=10, limit=9):
        store.finish(row.token, "[]")


def taken(webhooks):
    return [
        (row.id, row.state, hook.attempts) for row, hook in webhooks.take(again_s=AGAIN_S, limit=9)
    ]


def test_nobody_is_told_before_a_job_is_over(store, webhooks):
    accept(store)
    assert taken(webhooks) == []
    end(store)
    assert taken(webhooks) == [("x", "done", 0)]


def test_whoever_takes_one_has_it_alone_until_it_is_due_again(store, webhooks, clock):
    accept(store)
    end(store)
    taken(webhooks)
    clock.now += 9
    assert taken(webhooks) == []
    clock.now += 1
    assert taken(webhooks) == [("x", "done", 1)]
    clock.now += 1000
    assert taken(webhooks) == []  # given up


def test_what_was_delivered_is_not_told_again(store, webhooks, clock):
    accept(store)
    end(store)
    [(row, hook)] = webhooks.take(again_s=AGAIN_S, limit=9)
    webhooks.record(row.id, row.fence, None)
    clock.now += 1000

    assert (hook.url, hook.secret, hook.base_url) == ("https://there/", "s", "http://here/")
    assert taken(webhooks) == []
    assert webhooks.of("x").delivered_at == clock.now - 1000


def test_a_failure_says_why(store, webhooks):
    accept(store)
    end(store)
    [(row, _)] = webhooks.take(again_s=AGAIN_S, limit=9)
    webhooks.record(row.id, row.fence, "answered 500")
    assert (webhooks.of("x").error, webhooks.of("x").delivered_at) == ("answered 500", None)


def test_after_a_retry_its_next_end_is_told(store, webhooks):
    accept(store)
    store.cancel("x")
    [(row, _)] = webhooks.take(again_s=AGAIN_S, limit=9)
    store.retry("x", WIDE)
    webhooks.record(row.id, row.fence, None)  # of the end before
    end(store)

    assert taken(webhooks) == [("x", "done", 0)]


def test_a_forgotten_job_leaves_no_webhook(store, webhooks, clock):
    accept(store)
    end(store)
    store.forget(finished_before=clock.now + 1, limit=9)
    assert webhooks.of("x") is None


def test_the_same_idempotency_key_brings_no_second_webhook(store, webhooks):
    for name in ("x", "y"):
        new = NewJob(id=name, request="{}", fingerprint="f", idempotency_key="k", webhook=HOOK)
        store.accept(new, WIDE)
    assert webhooks.of("y") is None
