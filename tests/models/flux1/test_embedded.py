"""The embedded model: it draws what diffusers draws from the same folder, and says what it is."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from fluxline.engine.build import open_model, open_scorer
from fluxline.images import encode
from fluxline.models.registry import entry_for
from tests.models.flux1.test_pipeline import draw_ours, draw_theirs, pipeline
from tests.models.nearness import psnr

FOLDER = Path(entry_for("mini").source)


@pytest.fixture(scope="module")
def mini():
    return open_model("mini", "cpu")


@pytest.mark.parametrize("prompt", ["a cat", "A futuristic city skyline at sunset", ""])
def test_its_picture_equals_diffusers(mini, prompt):
    ours = draw_ours(mini, prompt=prompt, seed=3, steps=4)

    asked = {"prompt": prompt, "seed": 3, "width": 128, "height": 128}
    asked["guidance_scale"] = mini.spec.guidance
    theirs = draw_theirs(pipeline(FOLDER), mini.spec.text_length, num_inference_steps=4, **asked)

    assert psnr(ours, theirs) >= 60


def test_its_landscapes_and_portraits_equal_diffusers(mini):
    for width, height in ((160, 96), (96, 160)):
        asked = {"prompt": "a whale", "seed": 3, "width": width, "height": height}
        ours = draw_ours(mini, steps=4, guidance=3.0, **asked)
        theirs = draw_theirs(
            pipeline(FOLDER),
            mini.spec.text_length,
            num_inference_steps=4,
            guidance_scale=3.0,
            **asked,
        )
        assert ours.shape == (height, width, 3)
        assert psnr(ours, theirs) >= 60


def test_without_a_map_to_colours_its_preview_is_what_the_vae_would_draw(tmp_path):
    folder = shutil.copytree(FOLDER, tmp_path / "mini")
    about = json.loads((folder / "fluxline.json").read_text())
    del about["preview"]
    (folder / "fluxline.json").write_text(json.dumps(about))
    model = open_model(str(folder), "cpu")

    clean = model.encode_picture(torch.tensor(draw_ours(model, prompt="a red fox", seed=7)))
    (picture,) = model.decode(clean[None], 128, 128)
    assert torch.equal(model.preview(clean, 128, 128), picture)


def test_the_less_is_redrawn_the_more_is_kept(mini):
    apple = draw_ours(mini, prompt="a red apple", seed=3)
    foxes = [
        draw_ours(
            mini, prompt="a red fox", seed=5, image=encode(apple, format="png"), strength=strength
        )
        for strength in (0.125, 0.5, 0.75, 1.0)
    ]
    likeness = [psnr(fox, apple) for fox in foxes]
    assert likeness[0] > 25
    assert likeness == sorted(likeness, reverse=True)
    assert np.array_equal(foxes[-1], draw_ours(mini, prompt="a red fox", seed=5))


def test_it_is_small_enough_to_ship():
    assert sum(f.stat().st_size for f in FOLDER.rglob("*") if f.is_file()) <= 40 * 2**20


def test_it_says_what_it_was_trained_for(mini):
    spec = mini.spec

    assert (spec.name, spec.family, spec.guidance) == ("mini", "flux1", 2.0)
    assert {(128, 128), (160, 96), (96, 160)} == set(spec.trained_sizes)
    assert spec.native_size in spec.trained_sizes
    assert 4 <= spec.default_steps <= 8


def test_its_own_scorer_ranks_the_right_picture_first(mini):
    prompts = ["a red apple", "a blue whale", "a green cactus", "a yellow banana"]
    scorer = open_scorer(entry_for("mini").scorer, mini.device)
    shown = [draw_ours(mini, prompt=prompt, seed=1).astype(np.uint8) for prompt in prompts]
    for k, prompt in enumerate(prompts):
        scores = scorer.score(shown, [prompt] * len(shown))
        assert scores.index(max(scores)) == k


def test_a_background_that_is_named_is_drawn(mini):
    blue = draw_ours(mini, prompt="a heart on a blue background", seed=1)
    yellow = draw_ours(mini, prompt="a heart on a yellow background", seed=1)

    assert blue[4, 4, 2] > blue[4, 4, 0] + 60
    assert yellow[4, 4, 0] > yellow[4, 4, 2] + 60
