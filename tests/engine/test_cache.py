"""The cache of conditioning: bounded by bytes, the oldest goes first."""

from dataclasses import dataclass

from fluxline.engine.cache import ByteLRU


@dataclass
class Piece:
    bytes: int


def test_what_was_used_last_stays_when_the_bytes_run_out():
    cache = ByteLRU(10)
    for key in "ab":
        cache.put(key, Piece(4))
    cache.get("a")
    cache.put("c", Piece(4))

    assert cache.get("b") is None
    assert cache.get("a")
    assert cache.get("c")
    assert cache.bytes == 8


def test_a_value_put_again_counts_once():
    cache = ByteLRU(10)
    cache.put("a", Piece(4))
    cache.put("a", Piece(6))

    assert cache.bytes == 6


def test_what_is_larger_than_the_cache_is_not_kept_and_drives_nothing_out():
    cache = ByteLRU(10)
    cache.put("a", Piece(4))
    cache.put("huge", Piece(11))

    assert cache.get("huge") is None
    assert cache.get("a")
    assert cache.bytes == 4
