"""Pictures drawn from a picture: alone or in a batch, whatever the sampler, and made again."""

import io
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from fluxline.engine import Engine
from fluxline.engine.scheduler import Budget
from fluxline.engine.ticket import new_request
from fluxline.errors import InvalidParams
from fluxline.images import decode, digest, encode, fit, read_recipe
from fluxline.request import ImageReady, Planned, Progress, SamplerName, SamplingParams
from tests.images.pictures import noise, photo

ALONE = Budget(batch_tokens=1, resident_tokens=1)
TOGETHER = Budget(batch_tokens=2000, resident_tokens=8000)
SOURCE = encode(photo(64), format="png")


def pixels(image):
    return np.asarray(Image.open(io.BytesIO(image.data))).astype(np.int16)


class Counting:
    """A model that counts the pictures it reads."""

    def __init__(self, model):
        self._model, self.read = model, 0

    def __getattr__(self, name):
        return getattr(self._model, name)

    def encode_picture(self, pixels):
        self.read += 1
        return self._model.encode_picture(pixels)


@pytest.fixture
def counting(schnell):
    return Counting(schnell)


@pytest.fixture
def engine(counting):
    with Engine(counting, budget=TOGETHER) as engine:
        yield engine


@pytest.mark.parametrize("sampler", get_args(SamplerName))
def test_each_sampler_goes_from_the_picture_and_counts_what_is_left(engine, sampler):
    params = {"steps": 4, "strength": 0.5, "sampler": sampler, "width": 64, "height": 64}
    events = list(engine.submit(new_request("a fox", seed=3, image=SOURCE, params=params)))
    totals = {event.total for event in events if isinstance(event, Progress)}
    (image,) = [event.image for event in events if isinstance(event, ImageReady)]
    recipe = read_recipe(image.data)
    assert totals == {3 if sampler == "heun" else 2}
    assert len(recipe.receipt.sigmas) == 3
    assert recipe.receipt.sigmas[0] < 1


@pytest.mark.proves("mixed batch", "flux1")
def test_in_a_batch_each_has_its_own_picture(engine):
    other = encode(noise(64, 64), format="png")
    asked = [
        new_request("a fox", seed=3, image=image, params={"steps": 4, "strength": strength})
        for image in (SOURCE, other, None)
        for strength in ((0.25, 0.75) if image else (None,))
    ]
    tickets = [engine.submit(request) for request in asked]
    together = [ticket.result()[0] for ticket in tickets]
    for request, image in zip(asked, together, strict=True):
        alone = engine.submit(replace(request, id=request.id + "x")).result()[0]
        assert np.abs(pixels(image) - pixels(alone)).max() <= 1


def test_pictures_of_one_request_read_their_source_once(engine, counting):
    engine.generate("a fox", n=3, image=SOURCE, steps=2, width=64, height=64)
    assert counting.read == 1


def test_a_plan_may_redraw_more_or_less_and_in_other_sizes(engine):
    plan = tuple(
        Planned(seed=3, params=SamplingParams(steps=4, strength=s, width=w, height=64))
        for s, w in ((0.25, 64), (0.75, 64), (0.5, 32))
    )
    request = replace(new_request("a fox", image=SOURCE), plan=plan)
    images = engine.submit(request).result()
    assert [image.params.strength for image in images] == [0.25, 0.75, 0.5]
    assert [image.width for image in images] == [64, 64, 32]


def test_without_a_size_the_picture_comes_out_in_its_own_shape(engine):
    (image,) = engine.generate("a fox", image=encode(noise(100, 50), format="png"), steps=2)
    assert image.width == 2 * image.height


def test_the_recipe_names_the_source_and_makes_the_same_bytes_again(schnell):
    asked = new_request("a fox", seed=3, image=SOURCE, params={"steps": 3, "width": 48})
    with Engine(schnell, budget=ALONE, threads=2) as engine:
        (image,) = engine.submit(asked).result()
        recipe = read_recipe(image.data)
        assert recipe.source == digest(fit(decode(SOURCE), image.width, image.height))
        assert recipe.params.strength == 0.75
        again = replace(recipe.to_request("again"), source=SOURCE)
        assert engine.submit(again).result()[0].data == image.data


def test_what_is_no_picture_is_refused_before_anything_is_drawn(engine):
    with pytest.raises(InvalidParams) as caught:
        engine.submit(new_request("a fox", image=b"no picture"))
    assert caught.value.field == "image"
