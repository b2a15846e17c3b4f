"""Canvases that grow, and masks: what was there stays where it was, and the rest is said to go."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fluxline.errors import InvalidParams
from fluxline.images import (
    check_mask,
    decode_mask,
    decode_painted,
    encode_mask,
    expand,
    fill_in,
    shrink,
    soften,
)
from fluxline.images.canvas import OVERLAP_PX
from tests.images.pictures import noise, ramp

added = st.integers(0, 40)


def painted(alpha):
    """A file of white paint of so much alpha."""
    file = io.BytesIO()
    white = np.full((*alpha.shape, 3), 255, np.uint8)
    Image.fromarray(np.dstack([white, alpha])).save(file, "png")
    return file.getvalue()


@settings(max_examples=60, deadline=None)
@given(added, added, added, added, st.integers(1, 70), st.integers(1, 70))
def test_a_grown_canvas_has_the_picture_where_it_was(left, top, right, bottom, width, height):
    if not any((left, top, right, bottom)):
        return
    pixels = noise(width, height)
    grown, mask = expand(pixels, (left, top, right, bottom))
    assert grown.shape == (top + height + bottom, left + width + right, 3)
    assert mask.shape == grown.shape[:2]
    assert np.array_equal(grown[top : top + height, left : left + width], pixels)
    beside = np.ones(mask.shape, bool)
    beside[top : top + height, left : left + width] = False
    assert (mask[beside] == 255).all()
    assert (mask[~beside] < 255).all()


def test_its_edge_is_repeated_outward():
    grown, _ = expand(ramp(20, 10), (5, 0, 3, 0))
    assert (grown[:, :5] == grown[:, 5:6]).all()
    assert (grown[:, 25:] == grown[:, 24:25]).all()


def test_only_beside_what_was_added_does_the_mask_reach_into_the_picture_and_fades():
    _, mask = expand(noise(128, 128), (64, 0, 0, 0))
    inside = mask[60, 64:].astype(int)
    assert (np.diff(inside[: OVERLAP_PX + 1]) < 0).all()
    assert (inside[OVERLAP_PX:] == 0).all()
    assert (mask == mask[:1]).all()


def test_a_mask_of_the_picture_stays_a_part_of_the_whole():
    own = np.zeros((64, 64), np.uint8)
    own[30:34, 30:34] = 200
    _, mask = expand(noise(64, 64), (0, 10, 0, 0), own)
    assert (mask[40:44, 30:34] == 200).all()
    assert (mask[:10] == 255).all()
    assert (mask[50:] == 0).all()


@pytest.mark.parametrize(
    ("sides", "words"),
    [
        ((0, 0, 0, 0), "must add px"),
        ((5, 0, -1, 0), "must add px"),
        ((8000, 8000, 0, 0), "makes 8010x8010 px of 10x10; the most is 50 megapixels"),
    ],
)
def test_what_cannot_grow_is_said(sides, words):
    with pytest.raises(InvalidParams, match=words):
        expand(noise(10, 10), sides)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 40_000))
def test_a_picture_shrinks_to_so_many_pixels_in_its_own_shape(width, height, most):
    small = shrink(noise(width, height), most)
    if width * height <= most:
        assert small.shape == (height, width, 3)
        return
    high, wide, _ = small.shape
    assert wide * high <= most or 1 in (wide, high)
    assert abs(wide - height and wide * height / width - high) <= max(height / width, 1) + 1


def test_what_is_small_enough_is_the_same_array():
    pixels = noise(30, 20)
    assert shrink(pixels) is pixels


def test_a_softened_mask_goes_over_gradually():
    hard = np.zeros((64, 64), np.uint8)
    hard[:, :32] = 255
    soft = soften(hard, 4, 0).astype(int)
    assert (np.diff(soft[32]) <= 0).all()
    assert 100 < soft[32, 31] < 200
    assert (soft == soft[:1]).all()


def test_a_hole_is_filled_with_the_colours_around_it():
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[:, :48], pixels[:, 48:] = (200, 0, 0), (0, 0, 200)
    mask = np.zeros((64, 96), np.uint8)
    mask[16:48, 16:80] = 255
    pixels[mask > 0] = (0, 255, 0)

    filled = fill_in(pixels, mask)
    assert np.array_equal(filled[mask == 0], pixels[mask == 0])
    assert filled[mask > 0][:, 1].max() < 30  # nothing is left of what was there
    assert filled[32, 18, 0] > 150  # red at the left
    assert filled[32, 77, 2] > 150  # blue at the right


def test_a_mask_comes_back_from_its_file():
    mask = noise(33, 21)[..., 0]
    assert np.array_equal(decode_mask(encode_mask(mask), mask.shape), mask)
    with Image.open(io.BytesIO(encode_mask(mask))) as picture:
        assert picture.mode == "L"


def test_paint_on_transparency_is_what_is_redrawn_where_a_dialect_says_so():
    alpha = np.zeros((20, 20), np.uint8)
    alpha[5:9] = 255
    assert np.array_equal(decode_painted(painted(alpha), (20, 20)), alpha)
    assert np.array_equal(decode_mask(painted(alpha), (20, 20)), 255 - alpha)


def test_a_mask_of_nothing_is_refused_and_may_be_inverted():
    nothing = encode_mask(np.zeros((20, 20), np.uint8))
    for refuse in (lambda: decode_mask(nothing, (20, 20)), lambda: check_mask(np.zeros((2, 2)))):
        with pytest.raises(InvalidParams, match="nothing in it is"):
            refuse()
    assert not decode_painted(nothing, (20, 20)).any()
