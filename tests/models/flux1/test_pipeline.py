"""Whole pictures against diffusers' pipelines: same weights, same seed, float32."""

import io

import numpy as np
import pytest
import torch
from diffusers import FluxImg2ImgPipeline, FluxInpaintPipeline, FluxPipeline
from diffusers.pipelines.flux.pipeline_flux_img2img import retrieve_latents
from PIL import Image

from fluxline.engine import Engine
from fluxline.engine.build import open_model
from fluxline.engine.scheduler import Budget
from fluxline.engine.ticket import new_request
from fluxline.images import encode
from tests.images.pictures import photo
from tests.models.nearness import psnr
from tests.random_flux import TEXT_LENGTH

BUDGET = Budget(batch_tokens=1024, resident_tokens=8192)
PROMPT = "a red fox, 3 apples"


def draw_ours(model, **asked) -> np.ndarray:
    with Engine(model, budget=BUDGET) as engine:
        (image,) = engine.generate(asked.pop("prompt"), **asked)
    return np.asarray(Image.open(io.BytesIO(image.data)))


def pipeline(folder, kind=FluxPipeline):
    """Theirs, of the weights in a folder."""
    return kind.from_pretrained(folder, dtype=torch.float32)


def draw_theirs(pipe, text_length, **asked) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    seed = asked.pop("seed")
    picture = pipe(
        generator=torch.Generator("cpu").manual_seed(seed),
        max_sequence_length=text_length,
        output_type="np",
        **asked,
    ).images[0]
    return (picture * 255).round().astype(np.uint8)


@pytest.mark.proves("text to image", "flux1")
@pytest.mark.parametrize("size", [(64, 64), (96, 32)], ids=["square", "wide"])
@pytest.mark.parametrize("name", ["schnell", "dev"])
def test_a_picture_equals_diffusers(request, name, size):
    width, height = size
    asked = {"prompt": PROMPT, "width": width, "height": height, "seed": 11}

    ours = draw_ours(
        request.getfixturevalue(name), steps=4, guidance=2.5 if name == "dev" else None, **asked
    )

    pipe = pipeline(request.getfixturevalue(f"{name}_folder"))
    theirs = draw_theirs(pipe, TEXT_LENGTH, num_inference_steps=4, guidance_scale=2.5, **asked)
    assert theirs.std() > 5, "the oracle drew nothing"
    assert psnr(ours, theirs) >= 60


@pytest.mark.proves("true guidance", "flux1")
def test_true_guidance_equals_diffusers(schnell, schnell_folder):
    asked = {"prompt": PROMPT, "width": 64, "height": 64, "seed": 5, "negative_prompt": "blue"}

    ours = draw_ours(schnell, steps=3, cfg_scale=2.0, **asked)

    pipe = pipeline(schnell_folder)
    theirs = draw_theirs(pipe, TEXT_LENGTH, num_inference_steps=3, true_cfg_scale=2.0, **asked)
    assert psnr(ours, theirs) >= 60


class MeansOfPosteriors:
    """Theirs draws a sample of what the VAE says; ours takes the mean."""

    def _encode_vae_image(self, image, generator):
        latents = retrieve_latents(self.vae.encode(image), sample_mode="argmax")
        return (latents - self.vae.config.shift_factor) * self.vae.config.scaling_factor


class Img2Img(MeansOfPosteriors, FluxImg2ImgPipeline):
    pass


class Inpaint(MeansOfPosteriors, FluxInpaintPipeline):
    pass


@pytest.mark.proves("img2img", "flux1")
@pytest.mark.parametrize(("steps", "strength"), [(4, 0.5), (5, 0.75), (4, 0.05), (3, 1.0)])
@pytest.mark.parametrize("name", ["schnell", "dev"])
def test_a_picture_drawn_from_a_picture_equals_diffusers(request, name, steps, strength):
    source = photo(64)[:32]
    asked = {"prompt": PROMPT, "strength": strength, "seed": 11}
    guidance = 2.5 if name == "dev" else None

    ours = draw_ours(
        request.getfixturevalue(name),
        image=encode(source, format="png"),
        width=64,
        height=32,
        steps=steps,
        guidance=guidance,
        **asked,
    )

    pipe = pipeline(request.getfixturevalue(f"{name}_folder"), Img2Img)
    theirs = draw_theirs(
        pipe,
        TEXT_LENGTH,
        image=Image.fromarray(source),
        width=64,
        height=32,
        num_inference_steps=steps,
        guidance_scale=2.5,
        **asked,
    )
    assert theirs.std() > 5, "the oracle drew nothing"
    assert psnr(ours, theirs) >= 60


def masked(width: int, height: int) -> np.ndarray:
    """A mask of white in the middle: what is redrawn. Its edges lie on the model's grid."""
    mask = np.zeros((height, width), np.uint8)
    mask[16:-16, 16:-16] = 255
    return mask


@pytest.mark.proves("inpainting", "flux1")
@pytest.mark.parametrize(("steps", "strength"), [(4, 0.5), (3, 1.0)])
@pytest.mark.parametrize("name", ["schnell", "dev"])
def test_a_part_of_a_picture_drawn_anew_equals_diffusers(request, name, steps, strength):
    source, mask = photo(96)[:64], masked(96, 64)
    asked = {"prompt": PROMPT, "strength": strength, "seed": 11, "width": 96, "height": 64}
    guidance = 2.5 if name == "dev" else None

    ours = draw_ours(
        request.getfixturevalue(name),
        image=encode(source, format="png"),
        mask=encode(np.repeat(mask[..., None], 3, 2), format="png"),
        steps=steps,
        guidance=guidance,
        **asked,
    )

    pipe = pipeline(request.getfixturevalue(f"{name}_folder"), Inpaint)
    theirs = draw_theirs(
        pipe,
        TEXT_LENGTH,
        image=Image.fromarray(source),
        mask_image=Image.fromarray(mask),
        num_inference_steps=steps,
        guidance_scale=2.5,
        **asked,
    )
    assert theirs[mask > 0].std() > 5, "the oracle drew nothing"
    assert psnr(ours[mask > 0], theirs[mask > 0]) >= 60
    assert np.array_equal(ours[mask == 0], source[mask == 0]), "what is kept is as it was"


def test_a_bfl_single_file_draws_the_same_picture(dev, dev_folder, tmp_path):
    from tests.models.flux1.bfl_export import save_as_bfl

    folder = save_as_bfl(dev_folder, tmp_path)

    single = draw_ours(open_model(str(folder), "cpu"), prompt=PROMPT, seed=3, steps=2)

    assert np.array_equal(single, draw_ours(dev, prompt=PROMPT, seed=3, steps=2))


def test_new_request_names_a_parameter_that_does_not_exist():
    from fluxline.errors import InvalidParams

    with pytest.raises(InvalidParams, match="no parameter 'setps'"):
        new_request("a fox", params={"setps": 3})
