"""The asked size comes out exactly, with the middle in the middle and circles round."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxline.errors import InvalidParams
from fluxline.images import fit, place
from tests.images.pictures import noise, ramp

sides = st.integers(1, 90)


@settings(max_examples=80, deadline=None)
@given(sides, sides, sides, sides)
def test_exactly_the_asked_size_comes_out(drawn_width, drawn_height, width, height):
    fitted = fit(noise(drawn_width, drawn_height), width, height)
    assert fitted.shape == (height, width, 3)
    assert fitted.dtype == np.uint8


def test_picture_of_the_asked_size_is_the_same_array():
    pixels = noise(30, 20)
    assert fit(pixels, 30, 20) is pixels


@pytest.mark.parametrize(("width", "height"), [(1000, 600), (1001, 608), (1008, 595)])
def test_excess_of_the_grid_is_cropped_evenly_and_no_pixel_is_altered(width, height):
    pixels = noise(1008, 608)
    left, top = (1008 - width) // 2, (608 - height) // 2
    expected = pixels[top : top + height, left : left + width]
    assert np.array_equal(fit(pixels, width, height), expected)


def test_small_picture_is_resampled_where_a_crop_would_cost_the_motif():
    fitted = fit(ramp(32, 32), 20, 20).astype(int)
    assert fitted[0, 0, 0] < 10  # its left edge is still there, as are the others
    assert fitted[-1, -1, 1] > 245


@pytest.mark.parametrize(
    ("drawn", "asked"),
    [
        ((128, 128), (512, 512)),
        ((128, 128), (300, 100)),
        ((512, 512), (128, 128)),
        ((640, 360), (100, 100)),
        ((200, 400), (333, 97)),
    ],
)
def test_centre_stays_in_the_centre_and_the_aspect_is_kept(drawn, asked):
    fitted = fit(ramp(*drawn), *asked).astype(float)
    middle = fitted[fitted.shape[0] // 4 : -(fitted.shape[0] // 4 or 1)]
    across, down = middle[..., 0].mean(axis=0), fitted[..., 1].mean(axis=1)
    assert np.abs([across.mean() - 127.5, down.mean() - 127.5]).max() < 1  # one level of 255
    # Source pixels passed per pixel that came out, in each direction, from the ramps' slopes.
    step_x = np.polyfit(np.arange(len(across)), across, 1)[0] * drawn[0] / 255
    step_y = np.polyfit(np.arange(len(down)), down, 1)[0] * drawn[1] / 255
    assert abs(step_x - step_y) * min(asked) < max(1.0, 0.02 * min(drawn))  # px over the picture


def test_enlarging_covers_and_never_pads():
    white = np.full((64, 64, 3), 255, np.uint8)
    assert (fit(white, 200, 90) == 255).all()


@pytest.mark.parametrize(("width", "height", "field"), [(0, 5, "width"), (5, -1, "height")])
def test_side_below_one_is_refused_by_field(width, height, field):
    with pytest.raises(InvalidParams) as caught:
        fit(noise(8, 8), width, height)
    assert caught.value.field == field


@settings(max_examples=80, deadline=None)
@given(sides, sides, sides, sides)
def test_a_picture_laid_out_fills_the_drawn_size(width, height, drawn_width, drawn_height):
    placed = place(noise(width, height), drawn_width, drawn_height)
    assert placed.shape == (drawn_height, drawn_width, 3)
    assert placed.dtype == np.uint8


@pytest.mark.parametrize("asked", [(128, 128), (121, 120), (127, 128)])
def test_what_the_grid_adds_is_taken_away_again_without_a_trace(asked):
    pixels = noise(*asked)
    assert np.array_equal(fit(place(pixels, 128, 128), *asked), pixels)


@pytest.mark.parametrize(
    ("asked", "drawn"), [((256, 256), (128, 128)), ((200, 80), (160, 96)), ((90, 160), (96, 160))]
)
def test_a_picture_laid_out_and_fitted_again_stands_where_it_stood(asked, drawn):
    pixels = ramp(*asked)
    back = fit(place(pixels, *drawn), *asked)
    inner = (slice(8, -8), slice(8, -8))  # the edges ring
    assert np.abs(back[inner].astype(int) - pixels[inner]).max() <= 5
