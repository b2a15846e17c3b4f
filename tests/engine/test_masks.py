"""Parts of pictures drawn anew: what is kept is kept, in every sampler, size and batch."""

import io
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from fluxline.engine import Engine
from fluxline.engine.scheduler import Budget
from fluxline.engine.ticket import new_request
from fluxline.errors import InvalidParams
from fluxline.images import encode, read_recipe
from fluxline.request import SamplerName
from tests.images.pictures import photo

TOGETHER = Budget(batch_tokens=2000, resident_tokens=8000)
PIXELS = photo(64)
SOURCE = encode(PIXELS, format="png")


def file_of(mask, mode="L"):
    file = io.BytesIO()
    Image.fromarray(mask, mode=None).convert(mode).save(file, "png")
    return file.getvalue()


def left_half(side=64):
    mask = np.zeros((side, side), np.uint8)
    mask[:, : side // 2] = 255
    return mask


def pixels(image):
    return np.asarray(Image.open(io.BytesIO(image.data)))


@pytest.fixture
def engine(schnell):
    with Engine(schnell, budget=TOGETHER) as engine:
        yield engine


def draw(engine, **asked):
    asked = {"seed": 3, "image": SOURCE, "mask": file_of(left_half()), "steps": 3} | asked
    (image,) = engine.generate("a fox", **asked)
    return image


@pytest.mark.parametrize("sampler", get_args(SamplerName))
def test_what_is_not_masked_comes_back_as_it_was(engine, sampler):
    drawn = pixels(draw(engine, sampler=sampler))
    assert np.array_equal(drawn[:, 32:], PIXELS[:, 32:])
    assert np.abs(drawn[:, :32].astype(int) - PIXELS[:, :32]).mean() > 5


def test_a_mask_redraws_all_of_its_part_unless_strength_says_less(engine):
    whole, less = draw(engine), draw(engine, strength=0.4)
    assert whole.params.strength == 1.0
    assert not any("not seen" in warning for warning in whole.warnings)
    assert not np.array_equal(pixels(whole), pixels(less))


def test_what_is_transparent_is_redrawn_as_what_is_white(engine):
    clear = np.dstack([PIXELS, 255 - left_half()])
    file = io.BytesIO()
    Image.fromarray(clear).save(file, "png")
    by_alpha = draw(engine, mask=file.getvalue())
    assert np.array_equal(pixels(by_alpha), pixels(draw(engine)))


def test_grey_mixes_what_is_drawn_with_what_was(engine):
    grey = left_half() // 255 * 200
    drawn, whole = pixels(draw(engine, mask=file_of(grey))), pixels(draw(engine))
    mixed = PIXELS + 200 / 255 * (whole.astype(float) - PIXELS)
    assert np.abs(drawn - mixed)[:, :32].max() <= 1


def test_a_mask_of_another_size_and_the_same_shape_is_resampled(engine):
    twice = pixels(draw(engine, mask=file_of(left_half(128))))
    apart = np.abs(np.arange(64) - 31.5) > 1  # but where the resampled edge is soft
    assert np.array_equal(twice[:, apart], pixels(draw(engine))[:, apart])


def test_masked_pictures_share_forwards_with_others(engine):
    asked = [
        new_request("a fox", seed=3, image=SOURCE, mask=mask, params={"steps": 3})
        for mask in (file_of(left_half()), file_of(left_half().T.copy()), None)
    ]
    together = [ticket.result()[0] for ticket in map(engine.submit, asked)]
    assert np.array_equal(pixels(together[0])[:, 32:], PIXELS[:, 32:])
    assert np.array_equal(pixels(together[1])[32:], PIXELS[32:])
    alone = draw(engine)
    assert np.abs(pixels(together[0]).astype(int) - pixels(alone)).max() <= 1


def test_the_recipe_names_the_mask(engine):
    one = read_recipe(draw(engine).data)
    other = read_recipe(draw(engine, mask=file_of(left_half().T.copy())).data)
    assert one.mask is not None
    assert one.mask != other.mask
    assert one.source == other.source


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"mask": b"no picture"}, "mask must be a whole PNG"),
        ({"mask": file_of(np.zeros((64, 64), np.uint8))}, "nothing in it is"),
        ({"mask": file_of(np.ones((32, 64), np.uint8))}, "shape of the picture, 64x64; got 64x32"),
        ({"image": None}, "mask needs the picture"),
        ({"mask": None, "references": [SOURCE]}, "looks at no picture besides image; got 1"),
    ],
)
def test_what_cannot_be_is_said(engine, wrong, words):
    with pytest.raises(InvalidParams, match=words):
        draw(engine, **wrong)
