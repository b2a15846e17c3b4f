"""The technical score falls with each fault by itself, and is the same each time."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from fluxline.images import technical_score
from tests.images.pictures import noise, photo


def motif():
    """Shapes of middle tones with crisp edges, on a quiet ground."""
    picture = Image.new("RGB", (128, 128), (90, 100, 110))
    draw = ImageDraw.Draw(picture)
    for k in range(6):
        at = 8 + 18 * k
        draw.ellipse((at, at, at + 30, at + 24), fill=(200 - 20 * k, 60 + 20 * k, 40 + 30 * k))
    return np.asarray(picture)


@pytest.fixture(params=["motif", "photo"])
def picture(request):
    return motif() if request.param == "motif" else photo(128)


def test_blur_lowers_it(picture):
    blurred = np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(2)))
    assert technical_score(blurred) < technical_score(picture)


def test_less_contrast_lowers_it(picture):
    flat = (128 + 0.4 * (picture.astype(float) - 128)).astype(np.uint8)
    assert technical_score(flat) < technical_score(picture)


def test_clipped_tones_lower_it():
    clipped = motif().copy()
    clipped[clipped > 100] = 255
    free = np.clip(clipped, 1, 254)
    assert technical_score(clipped) < technical_score(free) - 0.05


def test_grain_is_not_taken_for_sharpness():
    grain = np.random.default_rng(0).normal(0, 40, (128, 128, 1))
    grainy = np.clip(motif() + grain, 1, 254).astype(np.uint8)
    assert technical_score(grainy) < technical_score(motif())


@pytest.mark.parametrize("shape", [(1, 1), (2, 90), (90, 2), (3, 3)])
def test_it_stays_between_0_and_1_for_any_size(shape):
    height, width = shape
    for pixels in (noise(width, height), np.full((height, width, 3), 255, np.uint8)):
        assert 0 <= technical_score(pixels) <= 1


def test_white_scores_nothing_and_the_same_picture_always_the_same():
    assert technical_score(np.full((64, 64, 3), 255, np.uint8)) == 0
    assert technical_score(photo(128)) == technical_score(photo(128).copy())
    assert technical_score(photo(128)[:, ::-1]) == pytest.approx(technical_score(photo(128)))
