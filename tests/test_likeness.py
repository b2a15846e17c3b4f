"""Measures of how alike pictures are say of known pictures what their formulas say."""

import math

import numpy as np
import pytest

from bench.likeness import gmsd, psnr, ssim

SIDE = 32


def flat(level):
    return np.full((SIDE, SIDE, 3), level, np.uint8)


def noisy(amplitude):
    noise = np.random.default_rng(0).integers(-amplitude, amplitude + 1, (SIDE, SIDE, 3))
    ramp = np.linspace(60, 190, SIDE)[None, :, None]
    return (ramp + noise).astype(np.uint8)


def test_equal_pictures_are_as_alike_as_can_be():
    picture = noisy(40)
    assert psnr(picture, picture) == math.inf
    assert ssim(picture, picture) == pytest.approx(1)
    assert gmsd(picture, picture) == 0


def test_a_level_everywhere_is_48_db():
    assert psnr(flat(7), flat(8)) == pytest.approx(20 * math.log10(255))


def test_flat_pictures_differ_in_structure_by_their_light_alone():
    c1 = (0.01 * 255) ** 2
    expected = (2 * 50 * 80 + c1) / (50**2 + 80**2 + c1)
    assert ssim(flat(50), flat(80)) == pytest.approx(expected)


def test_structure_that_is_turned_over_is_unlike():
    picture = noisy(40)
    assert ssim(picture, 255 - picture) < 0


def test_gradients_round_one_dot_are_prewitts():
    dot, level, c = flat(0), 90, 170
    dot[16:18, 16:18] = level  # a pixel of half the size
    corners, sides = c / (2 * level**2 / 9 + c), c / (level**2 / 9 + c)
    similar = [corners] * 4 + [sides] * 4 + [1.0] * (16 * 16 - 8)
    assert gmsd(flat(0), dot) == pytest.approx(np.std(similar))


@pytest.mark.parametrize(("measure", "sign"), [(psnr, -1), (ssim, -1), (gmsd, 1)])
def test_more_noise_is_less_alike(measure, sign):
    told = [sign * measure(noisy(0), noisy(amplitude)) for amplitude in (2, 8, 30)]
    assert told == sorted(told)
