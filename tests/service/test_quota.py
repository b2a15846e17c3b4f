"""A key's share of a minute."""

import pytest

from fluxline.errors import QueueFull
from fluxline.service.quota import Quota


@pytest.fixture
def clock():
    class Clock:
        now = 0.0

        def __call__(self):
            return self.now

    return Clock()


def spend(quota, owner, rate, cost):
    with quota.spent(owner, rate, cost):
        pass


def test_a_share_is_used_up_and_comes_back_by_the_second(clock):
    quota = Quota(clock)
    for _ in range(3):
        spend(quota, "ann", 60.0, 20.0)
    with pytest.raises(QueueFull) as refused:
        spend(quota, "ann", 60.0, 20.0)
    spend(quota, "bob", 60.0, 20.0)
    clock.now += refused.value.retry_after_s

    spend(quota, "ann", 60.0, 20.0)


def test_work_larger_than_a_share_is_done_and_owed(clock):
    quota = Quota(clock)
    spend(quota, "ann", 60.0, 600.0)
    clock.now += 539
    with pytest.raises(QueueFull):
        spend(quota, "ann", 60.0, 1.0)
    clock.now += 2

    spend(quota, "ann", 60.0, 1.0)


def test_a_key_without_a_rate_has_no_bucket(clock):
    quota = Quota(clock)
    for _ in range(100):
        spend(quota, "ann", None, 1e9)
    spend(quota, "ann", 60.0, 60.0)
    with pytest.raises(QueueFull):
        spend(quota, "ann", 60.0, 60.0)


def test_what_was_refused_in_the_end_costs_nothing(clock):
    quota = Quota(clock)
    for _ in range(100):
        with pytest.raises(ValueError, match="no"), quota.spent("ann", 60.0, 60.0):
            raise ValueError("no")

    spend(quota, "ann", 60.0, 60.0)
