"""Pictures in and out of other families: img2img, autoencoders, what cannot be drawn."""

import json

import numpy as np
import pytest
import torch
from diffusers import (
    EulerDiscreteScheduler,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusionImg2ImgPipeline,
)

from fluxline.engine.build import open_model
from fluxline.errors import LoadError
from fluxline.images import encode
from tests.images.pictures import photo
from tests.models.adapted.oracle import ORACLES, draw_ours, draw_theirs, theirs
from tests.models.adapted.test_families import FAMILIES, VARIANTS
from tests.models.nearness import psnr


@pytest.mark.proves("img2img", "{name}")
@pytest.mark.parametrize(
    ("name", "kind", "scheduler"),
    [
        ("sd", StableDiffusionImg2ImgPipeline, EulerDiscreteScheduler),
        ("sd3", StableDiffusion3Img2ImgPipeline, None),
    ],
)
def test_a_picture_drawn_from_a_picture_equals_diffusers(opened, name, kind, scheduler):
    model, source = opened(name), photo(64)
    asked = {"strength": 0.5, "seed": 11}

    ours = draw_ours(
        model, "a fox", image=encode(source, format="png"), steps=4, cfg_scale=1.0, **asked
    )

    pixels = torch.from_numpy(np.array(source)).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.inference_mode():
        clean = model.vae.encode(pixels)  # the mean: theirs would draw a sample
    drawn = draw_theirs(
        theirs(model, scheduler, kind),
        prompt="a fox",
        image=clean,
        num_inference_steps=4,
        guidance_scale=1.0,
        **asked,
    )
    assert drawn.std() > 5, "the oracle drew nothing"
    assert psnr(ours, drawn) >= 60


@pytest.mark.parametrize("name", [*FAMILIES, *VARIANTS])
def test_a_picture_comes_back_as_its_autoencoder_has_it(opened, name):
    model = opened(name)
    source = torch.from_numpy(np.array(photo(64)))

    ours = model.decode(model.encode_picture(source)[None], 64, 64)[0].numpy()

    vae, pixels = model.vae.vae, source.permute(2, 0, 1)[None] / 127.5 - 1
    with torch.inference_mode():
        encoded = vae.encode(pixels.unsqueeze(2) if name == "qwen-image" else pixels)
        latent = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latent
        drawn = vae.decode(latent).sample.reshape(3, 64, 64).permute(1, 2, 0)
    assert psnr(ours, (drawn.clamp(-1, 1) * 127.5 + 127.5).round().numpy()) >= 60


@pytest.mark.parametrize("name", FAMILIES)
def test_a_prompt_that_is_cut_is_told(opened, name):
    model = opened(name)

    short, long = model.encode(["a fox", "fox " * 400])

    assert (short.truncated, long.truncated) == (False, True)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_mask_covers_every_token_whose_pixels_are_redrawn(opened, name):
    model = opened(name)
    mask = torch.zeros(64, 128, dtype=torch.uint8)
    mask[:, :32] = 255

    tokens = model.encode_mask(mask)

    generator = torch.Generator().manual_seed(0)
    assert tokens.shape == model.noise(generator, 128, 64).shape
    assert tokens.mean() == pytest.approx(0.25)


def test_a_model_that_reads_more_than_the_picture_is_refused(opened, tmp_path):
    model = opened("sd")
    model.family.pipe.save_pretrained(tmp_path)
    config = tmp_path / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "in_channels": 9}))
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    from safetensors.torch import load_file, save_file

    tensors = load_file(weights)
    tensors["conv_in.weight"] = torch.zeros(16, 9, 3, 3)
    save_file(tensors, weights, metadata={"format": "pt"})

    with pytest.raises(LoadError, match="reads 9 channels where a picture has 4"):
        open_model(str(tmp_path), "cpu")


def test_a_folder_whose_files_are_named_for_their_precision_is_read(opened, tmp_path):
    model = opened("sd")
    model.family.pipe.save_pretrained(tmp_path, variant="bf16")

    assert open_model(str(tmp_path), "cpu").weights == model.weights


def test_a_folder_that_lacks_a_part_is_refused(opened, tmp_path):
    model = opened("sd")
    model.family.pipe.save_pretrained(tmp_path)
    for file in (tmp_path / "vae").iterdir():
        file.unlink()

    with pytest.raises(LoadError, match="cannot be read"):
        open_model(str(tmp_path), "cpu")


def test_an_answer_says_whose_network_drew(opened):
    from fluxline.engine import Engine
    from fluxline.images import read_recipe
    from tests.models.adapted.oracle import BUDGET

    with Engine(opened("sd"), budget=BUDGET, threads=1) as engine:
        (image,) = engine.generate("a fox", steps=1)
        (info,) = engine.models

    assert info.backend == image.backend == read_recipe(image.data).receipt.backend == "diffusers"
    assert (info.cfg_scale, image.params.cfg_scale) == (7.5, 7.5)
    assert set(ORACLES) >= {info.family}
