"""Our files are right: exact where the format is, close where it is not; bad asks are refused."""

import logging
import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from fluxline.errors import EngineError, InvalidParams, UnsupportedFormat
from fluxline.images import Recipe, encode, preview, read_recipe
from fluxline.request import SamplingParams
from tests.images.pictures import noise, photo, ramp

LOSSY = ["jpeg", "webp", "avif"]


def decoded(data):
    with Image.open(BytesIO(data)) as picture:
        return np.asarray(picture)


def chunks(data):
    at, found = 8, []
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", data, at + 8 + length) == (zlib.crc32(kind + body),)
        found.append((kind, body))
        at += 12 + length
    return found


def recipe(prompt="a red fox"):
    params = SamplingParams(width=8, height=8, steps=4)
    return Recipe(prompt=prompt, seed=7, model="mini", params=params, software="fluxline 0")


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 2**32))
@example(1, 1, 0)
@example(3, 7, 0)
@example(128, 128, 0)
@example(1000, 37, 0)
def test_picture_survives_the_png_encoder_bit_for_bit(width, height, seed):
    pixels = noise(width, height, seed)
    assert np.array_equal(decoded(encode(pixels, format="png")), pixels)


def test_view_into_a_larger_picture_is_encoded_as_what_it_shows():
    view = noise(40, 30)[3:20, 5:31]
    assert np.array_equal(decoded(encode(view, format="png")), view)
    assert decoded(encode(view, format="jpeg")).shape == view.shape
    assert decoded(encode(view, format="webp")).shape == view.shape
    assert decoded(encode(view, format="avif")).shape == view.shape


def test_png_of_a_photo_is_no_larger_than_pillow_level_1():
    pixels = photo(512)
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    assert len(encode(pixels, format="png")) <= 1.0 * len(file.getvalue())


def test_png_chunks_stand_in_order_with_right_checksums():
    kinds = [kind for kind, _ in chunks(encode(noise(5, 5), format="png", recipe=recipe()))]
    assert kinds == [b"IHDR", b"tEXt", b"tEXt", b"iTXt", b"IDAT", b"IEND"]


@pytest.mark.parametrize(
    ("prompt", "kind"), [("café, naïve", b"tEXt"), ("狐", b"iTXt"), ("\x00 and é", b"iTXt")]
)
def test_text_is_latin_1_where_it_can_be_and_international_otherwise(prompt, kind):
    texts = chunks(encode(noise(2, 2), format="png", recipe=recipe(prompt)))
    assert (texts[1][0], texts[1][1][:11]) == (kind, b"parameters\0")


@pytest.mark.parametrize("prompt", ["café, naïve", "狐 🦊\n'quoted'"])
def test_pillow_reads_the_infotext_from_a_png(prompt):
    mine = recipe(prompt)
    with Image.open(BytesIO(encode(noise(4, 4), format="png", recipe=mine))) as picture:
        assert picture.text["parameters"] == mine.to_infotext()


@pytest.mark.parametrize("format", LOSSY)
def test_pillow_reads_the_infotext_from_exif_user_comment(format):
    mine = recipe("狐 🦊, café")
    with Image.open(BytesIO(encode(noise(4, 4), format=format, recipe=mine))) as picture:
        comment = picture.getexif().get_ifd(0x8769)[0x9286]
    assert comment[:8] == b"UNICODE\0"
    assert comment[8:].decode("utf-16-be") == mine.to_infotext()


@pytest.mark.parametrize("format", LOSSY)
def test_lossy_formats_stay_close_at_their_default_quality(format):
    pixels = ramp(96, 64)
    error = decoded(encode(pixels, format=format)).astype(int) - pixels
    assert np.abs(error).mean() < 2  # levels of 255; what is seen on a smooth ramp, doubled


@pytest.mark.parametrize("format", LOSSY)
def test_lower_quality_makes_a_smaller_file_down_to_zero(format):
    sizes = [len(encode(photo(64), format=format, compression=q)) for q in (0, 50, 100)]
    assert sizes == sorted(set(sizes))


def test_avif_of_the_largest_side_is_read_again_and_its_bytes_are_the_same_each_time():
    pixels = np.zeros((1, 32768, 3), np.uint8)
    assert decoded(encode(pixels, format="avif")).shape == pixels.shape
    assert encode(photo(300), format="avif") == encode(photo(300), format="avif")


def test_png_ignores_compression():
    assert encode(ramp(9, 9), format="png", compression=3) == encode(ramp(9, 9), format="png")


def test_unknown_format_is_refused_by_name():
    with pytest.raises(UnsupportedFormat, match=r"output_format must be one of png.*got 'bmp'"):
        encode(ramp(2, 2), format="bmp")


@pytest.mark.parametrize("compression", [-1, 101, True, 9.5])
def test_compression_out_of_range_is_refused_by_field(compression):
    with pytest.raises(InvalidParams, match="from 0 to 100") as caught:
        encode(ramp(2, 2), format="jpeg", compression=compression)
    assert caught.value.field == "output_compression"


@pytest.mark.parametrize(("format", "side"), [("webp", 16384), ("jpeg", 65501), ("avif", 32769)])
def test_side_the_format_cannot_hold_is_refused_by_field(format, side):
    with pytest.raises(InvalidParams, match=f"got {side}") as caught:
        encode(np.zeros((1, side, 3), np.uint8), format=format)
    assert caught.value.field == "width"


@pytest.mark.parametrize(
    "pixels", [np.zeros((2, 2, 3)), np.zeros((2, 2), np.uint8), np.zeros((0, 2, 3), np.uint8)]
)
def test_pixels_of_another_shape_are_our_own_error(pixels):
    with pytest.raises(EngineError, match="pixels must be uint8"):
        encode(pixels, format="png")


def test_jpeg_keeps_the_exact_recipe_when_the_infotext_no_longer_fits():
    mine = recipe("fox " * 8000)
    assert read_recipe(encode(noise(8, 8), format="jpeg", recipe=mine)) == mine


def test_jpeg_is_delivered_without_a_recipe_too_long_for_it_and_says_so(caplog):
    with caplog.at_level(logging.WARNING):
        data = encode(noise(8, 8), format="jpeg", recipe=recipe("狐" * 20_000))
    assert read_recipe(data) is None
    assert decoded(data).shape == (8, 8, 3)
    assert "left out" in caplog.text


def test_preview_is_a_small_jpeg_of_the_same_shape():
    data = preview(ramp(1200, 600), max_side=300)
    assert data.startswith(b"\xff\xd8\xff")
    assert decoded(data).shape == (150, 300, 3)


@pytest.mark.parametrize("format", ["png", *LOSSY])
def test_preview_never_enlarges_and_has_the_asked_format(format):
    data = preview(ramp(40, 20), format)
    assert decoded(data).shape == (20, 40, 3)
    assert Image.open(BytesIO(data)).format == format.upper()
