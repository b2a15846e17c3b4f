"""The embedded model: it draws what diffusers draws from the same folder, and says what it is."""

from pathlib import Path

import pytest

from fluxline.engine.build import open_model
from fluxline.models.registry import entry_for
from tests.models.flux1.test_pipeline import draw_ours, draw_theirs, psnr

FOLDER = Path(entry_for("mini").source)


@pytest.fixture(scope="module")
def mini():
    return open_model("mini", "cpu")


@pytest.mark.parametrize("prompt", ["a cat", "A futuristic city skyline at sunset", ""])
def test_its_picture_equals_diffusers(mini, prompt):
    ours = draw_ours(mini, prompt=prompt, seed=3, steps=4)

    asked = {"prompt": prompt, "seed": 3, "width": 128, "height": 128}
    theirs = draw_theirs(FOLDER, mini.spec.text_length, num_inference_steps=4, **asked)

    assert psnr(ours, theirs) >= 60


def test_it_is_small_enough_to_ship():
    assert sum(f.stat().st_size for f in FOLDER.rglob("*") if f.is_file()) <= 40 * 2**20


def test_it_says_what_it_was_trained_for(mini):
    spec = mini.spec

    assert (spec.name, spec.family, spec.guidance) == ("mini", "flux1", None)
    assert spec.native_size in spec.trained_sizes
    assert 4 <= spec.default_steps <= 8


def test_a_background_that_is_named_is_drawn(mini):
    blue = draw_ours(mini, prompt="a heart on a blue background", seed=1)
    yellow = draw_ours(mini, prompt="a heart on a yellow background", seed=1)

    assert blue[4, 4, 2] > blue[4, 4, 0] + 60
    assert yellow[4, 4, 0] > yellow[4, 4, 2] + 60
