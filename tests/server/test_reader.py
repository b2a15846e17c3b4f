"""The process that reads pictures of strangers: it gives what was wished, and may die of it."""

import io
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fluxline.errors import InvalidParams
from fluxline.images import decode, decode_mask, encode, encode_mask
from fluxline.images.canvas import SEEN_PIXELS
from fluxline.server.reader import MEMORY_BYTES, Manner, Reader, Wish
from tests.images.pictures import noise, ramp
from tests.worker.fake_engine import INFO


def wish(image, width=None, height=None, fit="cropped", **more):
    manner = more.pop("manner", Manner(fit=fit))
    return Wish(image=image, width=width, height=height, info=INFO, manner=manner, **more)


@pytest.fixture
def own():
    """A reader of the test, which may break it."""
    reader = Reader(patience_s=20)
    yield reader
    reader.close()


def test_a_picture_comes_back_at_its_own_shape(reader):
    start = reader.read(wish(encode(noise(200, 100), format="png")))
    assert (start.width, start.height, start.shape) == (96, 48, (200, 100))
    assert decode(start.image).shape == (48, 96, 3)


def test_or_at_the_size_that_is_asked_from_its_middle(reader):
    start = reader.read(wish(encode(ramp(200, 100), format="png"), 64, 64))
    assert 60 < decode(start.image)[32, 0, 0] < 70  # a quarter from the left


def test_or_from_the_whole_stretched(reader):
    file = encode(ramp(200, 100), format="png")
    start = reader.read(wish(file, 64, 64, "stretched"))
    assert decode(start.image)[32, 0, 0] < 5


def test_one_of_the_asked_size_has_its_very_pixels(reader):
    pixels = noise(64, 64)
    assert np.array_equal(
        decode(reader.read(wish(encode(pixels, format="png"), 64, 64)).image), pixels
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


# ---- masks, references, grown canvases


def left_half(width, height):
    mask = np.zeros((height, width), np.uint8)
    mask[:, : width // 2] = 255
    return mask


def test_a_mask_is_made_to_fit_as_its_picture_is(reader):
    image, mask = encode(ramp(200, 100), format="png"), encode_mask(left_half(200, 100))
    for fit in ("cropped", "stretched", "padded"):
        start = reader.read(wish(image, 64, 64, fit, mask=mask))
        fitted = decode_mask(start.mask, (64, 64))
        assert (fitted[32, :26] == 255).all(), fit
        assert (fitted[32, 38:] == 0).all(), fit


def test_padded_has_the_whole_picture_and_its_edge_around(reader):
    start = reader.read(wish(encode(ramp(200, 100), format="png"), 64, 64, "padded"))
    pixels = decode(start.image)
    assert pixels[32, 0, 0] < 5
    assert pixels[32, -1, 0] > 250
    assert (pixels[:16] == pixels[:1]).all()


def test_a_mask_may_be_larger_than_its_picture_in_the_same_shape(reader):
    image = encode(noise(64, 48), format="png")
    start = reader.read(wish(image, 64, 48, mask=encode_mask(left_half(128, 96))))
    fitted = decode_mask(start.mask, (48, 64))
    assert (fitted[:, :30] == 255).all()
    assert (fitted[:, 34:] == 0).all()


def test_a_mask_may_be_inverted_painted_and_blurred(reader):
    image, mask = encode(noise(64, 64), format="png"), encode_mask(left_half(64, 64))
    manner = Manner(is_painted=True, is_inverted=True, blur=(4, 4))
    start = reader.read(wish(image, 64, 64, mask=mask, manner=manner))
    fitted = decode_mask(start.mask, (64, 64)).astype(int)
    assert fitted[32, 4] == 0
    assert fitted[32, 60] == 255
    assert 90 < fitted[32, 31] < 165


def test_what_is_masked_may_begin_as_the_colours_around_it(reader):
    pixels = np.full((64, 64, 3), 90, np.uint8)
    pixels[20:40, 20:40] = 255
    mask = (pixels[..., 0] == 255).astype(np.uint8) * 255
    asked = wish(
        encode(pixels, format="png"), 64, 64, mask=encode_mask(mask), manner=Manner(is_filled=True)
    )
    assert np.abs(decode(reader.read(asked).image).astype(int) - 90).max() <= 2


def test_references_keep_their_shape_and_are_no_larger_than_is_looked_at(reader):
    small, large = (
        encode(noise(30, 90), format="png"),
        encode(np.zeros((3000, 2000, 3), np.uint8), format="png"),
    )
    start = reader.read(wish(None, references=(small, large)))
    assert start.image is None
    assert np.array_equal(decode(start.references[0]), noise(30, 90))
    height, width, _ = decode(start.references[1]).shape
    assert SEEN_PIXELS * 0.99 < width * height <= SEEN_PIXELS
    assert abs(height / width - 1.5) < 0.01


def test_an_image_that_is_looked_at_keeps_its_shape_and_gives_the_size(reader):
    start = reader.read(wish(encode(noise(200, 100), format="png"), is_seen=True))
    assert decode(start.image).shape == (100, 200, 3)
    assert (start.width, start.height) == (96, 48)


def test_a_grown_picture_keeps_its_scale(reader):
    start = reader.read(wish(encode(noise(100, 60), format="png"), expand=(20, 0, 30, 5)))
    assert (start.width, start.height, start.shape) == (150, 65, (150, 65))
    assert np.array_equal(decode(start.image)[:60, 20:120], noise(100, 60))
    assert (decode_mask(start.mask, (65, 150))[:, :20] == 255).all()


def test_a_grown_picture_is_made_to_fit_a_size_that_is_asked(reader):
    image = encode(noise(100, 50), format="png")
    start = reader.read(wish(image, 64, 64, expand=(0, 25, 0, 25)))
    assert decode(start.image).shape == (64, 64, 3)
    assert (decode_mask(start.mask, (64, 64))[:15] == 255).all()


def test_the_size_is_that_of_the_picture_upright(reader):
    file, turned = io.BytesIO(), Image.Exif()
    turned[0x0112] = 6  # a quarter to the right
    Image.fromarray(noise(40, 20)).save(file, "png", exif=turned)
    start = reader.read(wish(file.getvalue(), expand=(0, 0, 0, 4)))
    assert (start.width, start.height) == (20, 44)


@pytest.mark.parametrize(
    ("more", "field", "words"),
    [
        ({"mask": b"no"}, "mask", "mask must be a whole PNG"),
        ({"mask": b""}, "mask", "this one is empty"),
        ({"mask": encode_mask(left_half(50, 60))}, "mask", "of the picture, 100x60; got 50x60"),
        ({"mask": encode_mask(np.zeros((60, 100), np.uint8))}, "mask", "nothing in it is"),
        ({"references": (b"no",)}, "references[0]", "must be a whole PNG"),
        ({"expand": (600, 0, 0, 0)}, "expand", "makes 700x60 of the picture, and fake draws"),
        ({"expand": (8000, 8000, 0, 0)}, "expand", "the most is 50 megapixels"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_pictures_is_said_by_its_name(reader, more, field, words):
    with pytest.raises(InvalidParams) as caught:
        reader.read(wish(encode(noise(100, 60), format="png"), **more))
    assert words in caught.value.message
    assert caught.value.field == field


def test_a_mask_of_what_falls_away_is_refused(reader):
    image, mask = encode(noise(200, 50), format="png"), np.zeros((50, 200), np.uint8)
    mask[:, :20] = 255
    with pytest.raises(InvalidParams, match="nothing in it is"):
        reader.read(wish(image, 64, 64, mask=encode_mask(mask)))


def test_pictures_that_no_message_would_hold_are_refused(reader):
    large = encode(noise(1536, 1024), format="png")  # 4.7 MB: noise does not compress
    with pytest.raises(InvalidParams, match="too much together: as PNG 50 MiB of at most 48"):
        reader.read(wish(None, references=(large,) * 11))
