"""FLUX.2 in the engine: rows of any kind beside each other, as if each were alone."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from fluxline.engine import Engine
from fluxline.engine.scheduler import Budget
from fluxline.engine.ticket import new_request
from fluxline.errors import InvalidParams
from fluxline.images import encode
from fluxline.request import Progress
from tests.images.pictures import photo

REFERENCE = encode(photo(96)[:64], format="png")
OTHER = encode(np.ascontiguousarray(photo(96)[32:].transpose(1, 0, 2)), format="png")

MIX = (
    {"prompt": "a fox", "width": 64, "height": 64, "steps": 3},
    {"prompt": "two owls", "width": 128, "height": 32, "steps": 5, "sampler": "heun"},
    {"prompt": "", "width": 32, "height": 128, "steps": 2, "cfg_scale": 3.0},
    {"prompt": "a fox", "width": 64, "height": 64, "steps": 3, "references": (REFERENCE,)},
    {"prompt": "an owl", "width": 128, "height": 32, "steps": 4, "references": (OTHER,)},
    {"prompt": "an owl", "width": 64, "height": 64, "references": (OTHER, REFERENCE)},
    {"prompt": "a cat", "width": 64, "height": 64, "image": REFERENCE, "strength": 0.6},
)


def request_of(asked):
    asked = dict(asked)
    beside = {name: asked.pop(name) for name in ("image", "references") if name in asked}
    return new_request(asked.pop("prompt"), seed=5, params=asked, **beside)


def pixels(ticket) -> np.ndarray:
    (image,) = ticket.result()
    return pixels_of(image)


def pixels_of(image) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(image.data))).astype(int)


@pytest.mark.proves("mixed batch", "flux2")
@pytest.mark.proves("img2img", "flux2")
@pytest.mark.parametrize("name", ["klein", "kv", "dev"])
def test_a_picture_depends_on_its_request_alone(models, name):
    with Engine(models[name], budget=Budget(batch_tokens=2000, resident_tokens=20_000)) as engine:
        tickets = [engine.submit(request_of(asked)) for asked in MIX]
        together = [pixels(ticket) for ticket in tickets]
        stats = engine.stats
    assert stats.forwards < stats.rows, "nothing shared a forward"
    with Engine(models[name], budget=Budget(batch_tokens=1, resident_tokens=1)) as engine:
        for asked, picture in zip(MIX, together, strict=True):
            gap = np.abs(pixels(engine.submit(request_of(asked))) - picture)
            assert gap.max() <= 1
            assert np.mean(gap == 0) >= 0.998


def test_previews_are_small_decodings(models):
    request = request_of({"prompt": "a fox", "width": 256, "height": 128, "steps": 2})
    with Engine(models["klein"], budget=Budget(batch_tokens=500, resident_tokens=5000)) as engine:
        events = list(engine.submit(replace(request, preview_every=1)))
    previews = [event.preview for event in events if isinstance(event, Progress)]
    assert [Image.open(io.BytesIO(preview)).size for preview in previews] == 2 * [(128, 64)]


def test_a_picture_given_alone_is_looked_at_and_with_a_strength_drawn_upon(models):
    with Engine(models["klein"], budget=Budget(batch_tokens=500, resident_tokens=5000)) as engine:
        asked = {"prompt": "a fox", "width": 64, "height": 64, "steps": 3}
        given = pixels(engine.submit(request_of({**asked, "image": REFERENCE})))
        looked = pixels(engine.submit(request_of({**asked, "references": (REFERENCE,)})))
        drawn = pixels(engine.submit(request_of({**asked, "image": REFERENCE, "strength": 0.5})))
    assert np.array_equal(given, looked)
    assert not np.array_equal(given, drawn)


@pytest.mark.parametrize(
    ("asked", "drawn"), [({}, (80, 48)), ({"width": 64}, (64, 48)), ({"image": OTHER}, (48, 80))]
)
def test_a_size_nobody_asked_for_follows_the_first_picture(models, asked, drawn):
    budget = Budget(batch_tokens=500, resident_tokens=5000)
    asked = {"prompt": "a fox", "steps": 1, "references": (REFERENCE, OTHER), **asked}
    with Engine(models["klein"], budget=budget) as engine:
        height, width = pixels(engine.submit(request_of(asked))).shape[:2]
    assert (width, height) == drawn


def test_more_pictures_than_it_looks_at_are_refused(models):
    with (
        Engine(models["klein"], budget=Budget(batch_tokens=1, resident_tokens=1)) as engine,
        pytest.raises(InvalidParams, match="looks at 10 at most; got 11"),
    ):
        engine.submit(request_of({"prompt": "a fox", "references": (REFERENCE,) * 11}))


def test_a_model_that_remembers_does_not_look_at_references_again(models):
    lengths = []
    layer = models["kv"].transformer.single_blocks[0].proj_in
    hook = layer.register_forward_pre_hook(lambda _, given: lengths.append(given[0].shape[1]))
    with Engine(models["kv"], budget=Budget(batch_tokens=500, resident_tokens=5000)) as engine:
        asked = {"prompt": "a fox", "width": 64, "height": 64, "steps": 3}
        for _ in range(2):
            engine.submit(request_of({**asked, "references": (REFERENCE,)})).result()
    hook.remove()

    assert lengths == [6 * 4, *[48 + 16] * 6], "the picture alone, once; then never beside"


def test_pictures_that_need_the_same_memory_make_it_once_however_large_it_is(models, monkeypatch):
    monkeypatch.setattr("fluxline.engine.seen.GUIDE_BYTES", 1)
    made = []
    layer = models["kv"].transformer.single_blocks[0].proj_in
    hook = layer.register_forward_pre_hook(lambda _, given: made.append(given[0].shape[1] == 6 * 4))
    asked = {"prompt": "a fox", "width": 64, "height": 64, "steps": 3, "references": (REFERENCE,)}
    with Engine(models["kv"], budget=Budget(batch_tokens=500, resident_tokens=5000)) as engine:
        images = engine.submit(replace(request_of(asked), n=4)).result()
        assert sum(made) == 1, "made anew for each picture"
        pixels(engine.submit(request_of(asked)))
    hook.remove()

    assert len(images) == 4
    assert sum(made) == 2, "kept though nobody needed it"
