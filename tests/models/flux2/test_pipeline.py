"""Whole pictures against diffusers' pipelines: same weights, same seed, float32."""

import numpy as np
import pytest
from diffusers import (
    Flux2KleinInpaintPipeline,
    Flux2KleinKVPipeline,
    Flux2KleinPipeline,
    Flux2Pipeline,
)
from PIL import Image

from fluxline.engine.build import open_model
from fluxline.images import encode
from tests.images.pictures import photo
from tests.models.flux1.test_pipeline import draw_ours, draw_theirs, pipeline
from tests.models.nearness import psnr
from tests.random_flux2 import TEXT_LENGTH

PROMPT = "a red fox, 3 apples"
PIPELINES = {
    "klein": Flux2KleinPipeline,
    "base": Flux2KleinPipeline,
    "kv": Flux2KleinKVPipeline,
    "dev": Flux2Pipeline,
}


@pytest.fixture(scope="session")
def theirs(folders):
    """Draw with diffusers' pipeline of a model's class."""
    pipelines = {name: pipeline(folders[name], kind) for name, kind in PIPELINES.items()}

    def draw(name, **asked) -> np.ndarray:
        drawn = draw_theirs(pipelines[name], TEXT_LENGTH, **asked)
        assert drawn.std() > 5, "the oracle drew nothing"
        return drawn

    return draw


def png(pixels: np.ndarray) -> bytes:
    return encode(pixels, format="png")


@pytest.mark.proves("text to image", "flux2")
@pytest.mark.parametrize(
    ("prompt", "size"),
    [(PROMPT, (64, 64)), ("a fox, " * 20, (96, 32)), ("", (32, 64))],
    ids=["short", "cut", "empty"],
)
@pytest.mark.parametrize("name", ["klein", "kv", "dev"])
def test_a_picture_equals_diffusers(models, theirs, name, size, prompt):
    width, height = size
    asked = {"prompt": prompt, "width": width, "height": height, "seed": 11}

    ours = draw_ours(models[name], steps=4, guidance=2.5 if name == "dev" else None, **asked)

    scale = {"guidance_scale": 2.5} if name == "dev" else {}
    assert psnr(ours, theirs(name, num_inference_steps=4, **scale, **asked)) >= 60


@pytest.mark.parametrize("steps", [1, 12])
def test_its_noise_levels_follow_the_number_of_steps(models, theirs, steps):
    asked = {"prompt": PROMPT, "width": 64, "height": 64, "seed": 3}

    ours = draw_ours(models["klein"], steps=steps, **asked)

    assert psnr(ours, theirs("klein", num_inference_steps=steps, **asked)) >= 60


@pytest.mark.proves("true guidance", "flux2")
def test_true_guidance_of_a_base_model_equals_diffusers(models, theirs):
    asked = {"prompt": PROMPT, "width": 64, "height": 64, "seed": 5}

    for scale, said in ((4.0, {}), (2.0, {"cfg_scale": 2.0}), (3.0, {"guidance": 3.0})):
        ours = draw_ours(models["base"], steps=3, **said, **asked)
        drawn = theirs("base", num_inference_steps=3, guidance_scale=scale, **asked)
        assert psnr(ours, drawn) >= 60


@pytest.mark.proves("references", "flux2")
@pytest.mark.parametrize(
    "sizes", [[(150, 130)], [(64, 80), (96, 64), (128, 70)]], ids=["one", "three"]
)
@pytest.mark.parametrize("name", ["klein", "base", "kv", "dev"])
def test_a_picture_after_pictures_equals_diffusers(models, theirs, name, sizes):
    pictures = [photo(160)[:height, :width] for width, height in sizes]
    asked = {"prompt": PROMPT, "width": 64, "height": 64, "seed": 7}
    scale = {"dev": {"guidance": 2.5}, "base": {"cfg_scale": 2.5}}.get(name, {})

    ours = draw_ours(models[name], steps=3, references=[png(p) for p in pictures], **scale, **asked)

    drawn = theirs(
        name,
        image=[Image.fromarray(p) for p in pictures],
        num_inference_steps=3,
        **({"guidance_scale": 2.5} if scale else {}),
        **asked,
    )
    assert psnr(ours, drawn) >= 60
    assert psnr(ours, draw_ours(models[name], steps=3, **scale, **asked)) < 40


@pytest.mark.proves("inpainting", "flux2")
def test_a_part_of_a_picture_drawn_anew_equals_diffusers(models, folders):
    source, mask = photo(96)[:64], np.zeros((64, 96), np.uint8)
    mask[16:-16, 16:-16] = 255
    asked = {"prompt": PROMPT, "strength": 0.7, "seed": 11, "width": 96, "height": 64}

    ours = draw_ours(
        models["klein"],
        image=png(source),
        mask=png(np.repeat(mask[..., None], 3, 2)),
        references=[png(source)],  # theirs always looks at it
        steps=4,
        **asked,
    )

    drawn = draw_theirs(
        pipeline(folders["klein"], Flux2KleinInpaintPipeline),
        TEXT_LENGTH,
        image=Image.fromarray(source),
        mask_image=Image.fromarray(mask),
        num_inference_steps=4,
        **asked,
    )
    assert psnr(ours[mask > 0], drawn[mask > 0]) >= 60
    assert np.array_equal(ours[mask == 0], source[mask == 0])


def test_a_bfl_single_file_draws_the_same_picture(models, folders, tmp_path):
    from tests.models.flux2.bfl_export import save_as_bfl

    for name in ("klein", "dev"):
        folder = save_as_bfl(folders[name], tmp_path / name)
        single = draw_ours(open_model(str(folder), "cpu"), prompt=PROMPT, seed=3, steps=2)
        assert np.array_equal(single, draw_ours(models[name], prompt=PROMPT, seed=3, steps=2))
