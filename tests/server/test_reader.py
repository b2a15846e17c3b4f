"""The process that reads pictures of strangers: it gives what was wished, and may die of it."""

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from fluxline.errors import InvalidParams
from fluxline.images import decode, encode
from fluxline.server.reader import MEMORY_BYTES, Reader, Wish
from tests.images.pictures import noise, ramp
from tests.worker.fake_engine import INFO


def wish(file, width=None, height=None, *, is_stretched=False):
    return Wish(file, width, height, INFO, is_stretched)


@pytest.fixture
def own():
    """A reader of the test, which may break it."""
    reader = Reader(patience_s=20)
    yield reader
    reader.close()


def test_a_picture_comes_back_at_its_own_shape(reader):
    start = reader.read(wish(encode(noise(200, 100), format="png")))
    assert (start.width, start.height, start.shape) == (96, 48, (200, 100))
    assert decode(start.file).shape == (48, 96, 3)


def test_or_at_the_size_that_is_asked_from_its_middle(reader):
    start = reader.read(wish(encode(ramp(200, 100), format="png"), 64, 64))
    assert 60 < decode(start.file)[32, 0, 0] < 70  # a quarter from the left


def test_or_from_the_whole_stretched(reader):
    file = encode(ramp(200, 100), format="png")
    start = reader.read(wish(file, 64, 64, is_stretched=True))
    assert decode(start.file)[32, 0, 0] < 5


def test_one_of_the_asked_size_has_its_very_pixels(reader):
    pixels = noise(64, 64)
    assert np.array_equal(
        decode(reader.read(wish(encode(pixels, format="png"), 64, 64)).file), pixels
    )


def test_what_is_no_picture_is_refused_and_the_next_is_read(reader):
    with pytest.raises(InvalidParams, match="must be a whole PNG"):
        reader.read(wish(b"no picture"))
    assert reader.read(wish(encode(noise(8, 8), format="png"))).shape == (8, 8)


def test_the_process_knows_no_secret(own, monkeypatch):
    monkeypatch.setenv("API_KEYS", "secret")
    own.read(wish(encode(noise(8, 8), format="png")))
    with open(f"/proc/{own._process.pid}/environ", "rb") as environment:
        assert b"secret" not in environment.read()


def test_the_process_has_so_much_memory_and_no_more(own):
    own.read(wish(encode(noise(8, 8), format="png")))
    limits = Path(f"/proc/{own._process.pid}/limits").read_text()
    [line] = [line for line in limits.splitlines() if line.startswith("Max address space")]
    assert line.split()[3:5] == [str(MEMORY_BYTES)] * 2


def test_who_kills_it_costs_one_picture(own):
    file = encode(noise(8, 8), format="png")
    own.read(wish(file))
    os.kill(own._process.pid, 9)
    own._process.wait()
    assert own.read(wish(file)).shape == (8, 8)


def test_what_takes_too_long_is_given_up_and_the_next_is_read():
    reader = Reader(patience_s=0.0)
    began = time.monotonic()
    with pytest.raises(InvalidParams, match="takes too much time"):
        reader.read(wish(encode(noise(512, 512), format="png")))
    assert time.monotonic() - began < 20
    reader._patience_s = 20
    assert reader.read(wish(encode(noise(8, 8), format="png"))).shape == (8, 8)
    reader.close()


def test_the_largest_that_may_come_fits_into_its_memory(own):
    file = encode(np.zeros((6000, 8000, 3), np.uint8), format="png")  # 48 megapixels, 140 kB
    assert own.read(wish(file, 64, 48)).shape == (8000, 6000)


def test_closing_ends_what_is_being_read(own):
    own.read(wish(encode(noise(8, 8), format="png")))
    os.kill(own._process.pid, 19)  # it stands still
    refused = []

    def read():
        try:
            own.read(wish(encode(noise(8, 8), format="png")))
        except InvalidParams as exc:
            refused.append(exc.message)

    thread = threading.Thread(target=read)
    thread.start()
    while not own._turn.locked():
        time.sleep(0.01)
    own.close()
    thread.join(20)
    assert len(refused) == 1
