"""Models that look at pictures, in the engine: what shares a forward, and what is refused."""

import numpy as np
import pytest

from fluxline.engine import Engine
from fluxline.engine.scheduler import Budget
from fluxline.engine.sources import Sources
from fluxline.engine.ticket import new_request
from fluxline.engine.tune import tune
from fluxline.errors import InvalidParams
from fluxline.images import encode
from tests.engine.test_masks import file_of, left_half, pixels
from tests.images.pictures import photo

TOGETHER = Budget(batch_tokens=2000, resident_tokens=8000)
ONE, OTHER = (encode(picture, format="png") for picture in (photo(64), photo(64)[::-1].copy()))
MASK = file_of(left_half())


def draw(model, requests):
    """Pictures of requests that wait at the same time, and how many forwards they took."""
    with Engine(model, budget=TOGETHER) as engine:
        tickets = [engine.submit(request) for request in requests]
        drawn = [pixels(ticket.result()[0]) for ticket in tickets]
        return drawn, engine.stats.forwards


def asked(**more):
    return new_request("a fox", seed=3, params={"steps": 2, **more.pop("params", {})}, **more)


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("kontext", [{"image": ONE}, {"image": OTHER}, {}, {"image": ONE, "mask": MASK}]),
        ("fill", [{"image": ONE, "mask": MASK}, {"image": OTHER, "mask": MASK}]),
        ("depth", [{"image": ONE}, {"image": OTHER}, {"image": ONE, "params": {"cfg_scale": 2.0}}]),
        ("controlnet", [{"image": ONE}, {"image": OTHER}]),
        ("redux", [{"image": ONE}, {"references": [OTHER]}, {"references": [ONE, OTHER]}, {}]),
    ],
)
def test_rows_that_look_at_different_pictures_are_as_if_alone(request, name, rows):
    model = request.getfixturevalue(name)
    together, forwards = draw(model, [asked(**row) for row in rows])
    alone = [draw(model, [asked(**row)]) for row in rows]
    for mixed, (solo, _) in zip(together, alone, strict=True):
        assert np.abs(mixed.astype(int) - solo[0]).max() <= 1
    assert forwards < sum(taken for _, taken in alone), "some shared"


def test_what_differs_in_references_shares_no_forward_and_what_has_others_does(kontext):
    _, apart = draw(kontext, [asked(image=ONE), asked()])
    _, joined = draw(kontext, [asked(image=ONE), asked(image=OTHER)])
    assert apart == 4
    assert joined < apart


def test_a_size_that_nobody_asked_for_follows_the_picture_that_is_looked_at(kontext, depth):
    wide = encode(photo(80)[:40], format="png")
    for model in (kontext, depth):
        ((drawn,), _) = draw(model, [asked(image=wide)])
        assert drawn.shape == (48, 96, 3)


def test_a_map_lies_over_what_is_drawn_pixel_by_pixel(depth):
    """Asked for a size off the grid, the map is laid out as a source is: not resampled."""
    given = photo(60)
    sources = Sources(asked(image=encode(given, format="png")), depth.spec)
    (picture,) = sources.references((60, 60), (64, 64))
    assert picture.pixels.shape == (64, 64, 3)
    assert np.array_equal(picture.pixels[2:62, 2:62], given)


def test_what_a_picture_shows_says_nothing_of_the_size(redux):
    ((drawn,), _) = draw(redux, [asked(image=encode(photo(80)[:40], format="png"))])
    assert drawn.shape == (64, 64, 3)


@pytest.mark.parametrize("name", ["fill", "depth"])
def test_what_needs_a_picture_is_measured_with_one(request, monkeypatch, name):
    monkeypatch.setattr("fluxline.engine.tune.PATIENCE_S", 0.1)
    model = request.getfixturevalue(name)
    guides, context = [], model.context

    def seen(*given, guide, **more):
        guides.append(guide)
        return context(*given, guide=guide, **more)

    monkeypatch.setattr(model, "context", seen)
    tune(model)
    assert guides
    assert all(guide is not None and guide.bytes for guide in guides)


@pytest.mark.parametrize(
    ("name", "wrong", "words"),
    [
        ("fill", {}, "fills a part of a picture: give image and mask"),
        ("fill", {"image": ONE}, "fills a part of a picture: give image and mask"),
        ("fill", {"image": ONE, "mask": MASK, "references": [ONE]}, "no picture besides image"),
        ("depth", {}, "draws after a picture: give image"),
        ("depth", {"image": ONE, "references": [OTHER]}, "looks at 1 at most; got 2"),
        ("depth", {"image": ONE, "mask": MASK}, "give one besides that to start from"),
        ("kontext", {"references": [ONE, OTHER]}, "looks at 1 at most; got 2"),
        ("redux", {"references": 5 * [ONE]}, "looks at 4 at most; got 5"),
    ],
)
def test_what_cannot_be_is_said(request, name, wrong, words):
    with (
        Engine(request.getfixturevalue(name), budget=TOGETHER) as engine,
        pytest.raises(InvalidParams, match=words),
    ):
        engine.submit(asked(**wrong))
