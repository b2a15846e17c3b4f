"""API keys: made once, kept as hashes, good until they are revoked or over."""

import pytest
from sqlalchemy import text

from fluxline.errors import InvalidParams
from fluxline.jobs import KeyRing, Scope


@pytest.fixture
def ring(database, clock):
    return KeyRing(database, given=["client1", "clé"], clock=clock)


def test_a_made_key_is_good_and_says_what_it_may(ring):
    key, secret = ring.create("ann", scopes=[Scope.ADMIN], priority=2, most_open=3, rate=1e9)
    assert ring.check(secret) == key
    assert (key.scopes, key.priority, key.most_open, key.rate) == ({Scope.ADMIN}, 2, 3, 1e9)


def test_the_secret_is_nowhere_in_the_database(ring, database):
    _, secret = ring.create("ann")
    with database.reading() as db:
        held = str(db.execute(text("select * from keys")).all())
    assert secret.rsplit("_", 1)[1] not in held


@pytest.mark.parametrize("change", [lambda s: s[:-1], lambda s: s + "x", lambda s: s.upper()])
def test_a_key_that_is_nearly_right_is_wrong(ring, change):
    _, secret = ring.create("ann")
    assert ring.check(change(secret)) is None


@pytest.mark.parametrize(
    "wrong", ["", "flx", "flx_", "flx__", "client", "client11", "é", "\udcff", "flx_\0_x"]
)
def test_what_is_no_key_is_wrong(ring, wrong):
    assert ring.check(wrong) is None


def test_the_id_of_one_key_with_the_secret_of_another_is_wrong(ring):
    _, one = ring.create("ann")
    _, other = ring.create("bob")
    prefix, key_id, _ = one.split("_", 2)
    assert ring.check(f"{prefix}_{key_id}_{other.split('_', 2)[2]}") is None


def test_a_revoked_key_is_wrong(ring):
    key, secret = ring.create("ann")
    assert ring.revoke(key.id)
    assert ring.check(secret) is None
    assert not ring.revoke("nobody")
    assert [k.revoked_at for k in ring.all()] == [1000.0]


def test_a_key_is_good_for_its_days(ring, clock):
    _, secret = ring.create("ann", days=1)
    clock.now += 86399
    assert ring.check(secret)
    clock.now += 1
    assert ring.check(secret) is None


def test_keys_of_the_environment_may_draw_and_no_more(ring):
    for given in ("client1", "clé"):
        key = ring.check(given)
        assert key.scopes == {Scope.GENERATE}
        assert given not in key.id


def test_keys_are_listed_newest_first(ring, clock):
    ring.create("ann")
    clock.now += 1
    ring.create("bob")
    assert [key.name for key in ring.all()] == ["bob", "ann"]


@pytest.mark.parametrize("name", ["", "  ", "x" * 65])
def test_a_key_needs_a_name(ring, name):
    with pytest.raises(InvalidParams):
        ring.create(name)
