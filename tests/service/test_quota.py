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


def test_a_share_is_used_up_and_comes_back_by_the_second(clock):
    quota = Quota(clock)
    for _ in range(3):
        quota.spend("ann", 60.0, 20.0)
    with pytest.raises(QueueFull) as refused:
        quota.spend("ann", 60.0, 20.0)
    quota.spend("bob", 60.0, 20.0)
    clock.now += refused.value.retry_after_s

    quota.spend("ann", 60.0, 20.0)


def test_work_larger_than_a_share_is_done_and_owed(clock):
    quota = Quota(clock)
    quota.spend("ann", 60.0, 600.0)
    clock.now += 539
    with pytest.raises(QueueFull):
        quota.spend("ann", 60.0, 1.0)
    clock.now += 2

    quota.spend("ann", 60.0, 1.0)


def test_a_key_without_a_rate_has_no_bucket(clock):
    quota = Quota(clock)
    for _ in range(100):
        quota.spend("ann", None, 1e9)
