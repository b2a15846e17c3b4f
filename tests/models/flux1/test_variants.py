"""Models that read pictures beside the prompt, against diffusers' pipelines of each."""

import io
import json
import shutil

import numpy as np
import pytest
from diffusers import (
    FluxControlImg2ImgPipeline,
    FluxControlNetModel,
    FluxControlNetPipeline,
    FluxControlPipeline,
    FluxFillPipeline,
    FluxKontextInpaintPipeline,
    FluxKontextPipeline,
    FluxPriorReduxPipeline,
)
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
from PIL import Image
from safetensors.torch import save_file
from transformers import SiglipVisionModel
from transformers.models.siglip import SiglipImageProcessorPil

from fluxline.engine import Engine
from fluxline.engine.build import open_model
from fluxline.images import encode, stretch
from tests.images.pictures import photo
from tests.lora_files import random_lora
from tests.models.flux1.bfl_export import save_as_bfl
from tests.models.flux1.oracle import small_config
from tests.models.flux1.test_pipeline import (
    BUDGET,
    PROMPT,
    draw_ours,
    draw_theirs,
    masked,
    pipeline,
)
from tests.models.nearness import psnr
from tests.random_flux import TEXT_LENGTH, save_random_controlnet


@pytest.fixture(autouse=True)
def means_of_posteriors(monkeypatch):
    """Theirs draws a sample of what the VAE says; ours takes the mean."""
    monkeypatch.setattr(
        DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode()
    )


def png(pixels: np.ndarray) -> bytes:
    return encode(pixels if pixels.ndim == 3 else np.dstack([pixels] * 3), format="png")


def compare(folder, ours, kind, steps=3, **asked):
    """Theirs, drawn, and asserted to be ours."""
    theirs = draw_theirs(
        pipeline(folder, kind),
        TEXT_LENGTH,
        prompt=PROMPT,
        seed=11,
        num_inference_steps=steps,
        guidance_scale=2.5,
        **asked,
    )
    assert theirs.std() > 5, "the oracle drew nothing"
    assert psnr(ours, theirs) >= 60
    return theirs


def read_by_their_redux(folder, pipe, seen):
    """Their prompt and what the pictures show: text and the pooled vector."""
    prior = FluxPriorReduxPipeline(
        image_encoder=SiglipVisionModel.from_pretrained(folder / "image_encoder"),
        feature_extractor=SiglipImageProcessorPil.from_pretrained(folder / "feature_extractor"),
        image_embedder=ReduxImageEncoder.from_pretrained(folder / "image_embedder"),
        text_encoder=pipe.text_encoder,
        tokenizer=pipe.tokenizer,
        text_encoder_2=pipe.text_encoder_2,
        tokenizer_2=pipe.tokenizer_2,
    )
    text, pooled, _ = pipe.encode_prompt(PROMPT, max_sequence_length=TEXT_LENGTH)
    for picture in seen:  # theirs adds prompts up; one after another they are read as ours
        asked = {"prompt_embeds": text, "pooled_prompt_embeds": pooled}
        text = prior(Image.fromarray(picture), **asked).prompt_embeds
    return text, pooled


@pytest.mark.proves("text to image", "kontext")
@pytest.mark.proves("references", "kontext")
@pytest.mark.parametrize("seen", [None, photo(96)[:60, :90]], ids=["nothing", "a picture"])
def test_kontext_equals_diffusers(kontext, kontext_folder, seen):
    asked = {"width": 96, "height": 64}
    image = None if seen is None else png(seen)

    ours = draw_ours(kontext, prompt=PROMPT, seed=11, steps=3, guidance=2.5, image=image, **asked)

    theirs = compare(
        kontext_folder,
        ours,
        FluxKontextPipeline,
        image=None if seen is None else Image.fromarray(seen),
        max_area=96 * 64,
        _auto_resize=False,
        **asked,
    )
    if seen is not None:
        blind = draw_ours(kontext, prompt=PROMPT, seed=11, steps=3, guidance=2.5, **asked)
        assert psnr(blind, theirs) < 50, "the picture hardly matters"


@pytest.mark.proves("true guidance", "kontext")
def test_kontext_against_a_negative_prompt_equals_diffusers(kontext, kontext_folder):
    seen = photo(64)

    ours = draw_ours(
        kontext,
        prompt=PROMPT,
        seed=11,
        steps=3,
        guidance=2.5,
        image=png(seen),
        cfg_scale=2.0,
        negative_prompt="blue",
    )

    compare(
        kontext_folder,
        ours,
        FluxKontextPipeline,
        image=Image.fromarray(seen),
        true_cfg_scale=2.0,
        negative_prompt="blue",
        width=64,
        height=64,
        max_area=64 * 64,
        _auto_resize=False,
    )


@pytest.mark.proves("inpainting", "kontext")
@pytest.mark.parametrize("other", [None, photo(48)], ids=["itself", "another"])
def test_a_part_of_a_picture_drawn_anew_by_kontext_equals_diffusers(kontext, kontext_folder, other):
    source, mask = photo(96)[:48, :80], masked(80, 48)
    seen = {} if other is None else {"references": [png(other)]}
    theirs_seen = None if other is None else Image.fromarray(stretch(other, 64, 64))

    ours = draw_ours(
        kontext,
        prompt=PROMPT,
        seed=11,
        steps=4,
        guidance=2.5,
        image=png(source),
        mask=png(mask),
        strength=0.8,
        **seen,
    )

    theirs = draw_theirs(
        pipeline(kontext_folder, FluxKontextInpaintPipeline),
        TEXT_LENGTH,
        prompt=PROMPT,
        seed=11,
        num_inference_steps=4,
        guidance_scale=2.5,
        image=Image.fromarray(source),
        mask_image=Image.fromarray(mask),
        image_reference=theirs_seen,
        strength=0.8,
        width=80,
        height=48,
        max_area=80 * 48,
        _auto_resize=False,
    )
    assert psnr(ours[mask > 0], theirs[mask > 0]) >= 60
    assert np.array_equal(ours[mask == 0], source[mask == 0])


@pytest.mark.parametrize("name", ["fill", "depth"])
def test_a_bfl_single_file_draws_the_same_picture(request, tmp_path, name):
    folder = save_as_bfl(request.getfixturevalue(f"{name}_folder"), tmp_path / name)
    asked = {"prompt": PROMPT, "seed": 3, "steps": 1, "image": png(photo(64))}
    asked |= {"mask": png(masked(64, 64))} if name == "fill" else {}

    single = draw_ours(open_model(str(folder), "cpu"), **asked)

    assert np.array_equal(single, draw_ours(request.getfixturevalue(name), **asked))


@pytest.mark.proves("inpainting", "fill")
@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_fill_equals_diffusers(fill, fill_folder, strength):
    source, mask = photo(96)[:64], np.zeros((64, 96), np.uint8)
    mask[7:50, 20:77] = 255  # not on the model's grid: it sees every pixel of it

    ours = draw_ours(
        fill,
        prompt=PROMPT,
        seed=11,
        steps=4,
        guidance=2.5,
        image=png(source),
        mask=png(mask),
        width=96,
        height=64,
        **({} if strength == 1.0 else {"strength": strength}),
    )

    theirs = draw_theirs(
        pipeline(fill_folder, FluxFillPipeline),
        TEXT_LENGTH,
        prompt=PROMPT,
        seed=11,
        num_inference_steps=4,
        guidance_scale=2.5,
        image=Image.fromarray(source),
        mask_image=Image.fromarray(mask),
        strength=strength,
        width=96,
        height=64,
    )
    assert theirs[mask > 0].std() > 5, "the oracle drew nothing"
    assert psnr(ours[mask > 0], theirs[mask > 0]) >= 60
    assert np.array_equal(ours[mask == 0], source[mask == 0])


@pytest.mark.proves("references", "depth and canny")
def test_a_picture_drawn_after_a_map_equals_diffusers(depth, depth_folder):
    depths = photo(96)[:48]

    ours = draw_ours(depth, prompt=PROMPT, seed=11, steps=3, guidance=2.5, image=png(depths))

    assert ours.shape == (48, 96, 3)
    compare(
        depth_folder,
        ours,
        FluxControlPipeline,
        control_image=Image.fromarray(depths),
        width=96,
        height=48,
    )


@pytest.mark.proves("img2img", "depth and canny")
def test_a_picture_drawn_from_one_after_a_map_equals_diffusers(depth, depth_folder):
    source, depths = photo(64), photo(64)[::-1].copy()

    ours = draw_ours(
        depth,
        prompt=PROMPT,
        seed=11,
        steps=4,
        guidance=2.5,
        image=png(source),
        references=[png(depths)],
        strength=0.5,
    )

    compare(
        depth_folder,
        ours,
        FluxControlImg2ImgPipeline,
        steps=4,
        image=Image.fromarray(source),
        control_image=Image.fromarray(depths),
        strength=0.5,
        width=64,
        height=64,
    )


@pytest.mark.proves("references", "controlnet")
@pytest.mark.filterwarnings("ignore:`FluxPosEmbed`:FutureWarning")  # of diffusers to itself
@pytest.mark.parametrize(("singles", "scale"), [(2, 1.0), (0, 0.7)])
def test_a_controlnet_equals_diffusers(controlnet_folder, tmp_path, singles, scale):
    folder = shutil.copytree(controlnet_folder, tmp_path / "model")
    config = small_config(guidance=scale == 1.0, head_dim=64, heads=2, double=2, single=singles)
    save_random_controlnet(folder, config)
    about = json.loads((folder / "fluxline.json").read_text()) | {"controlnet_scale": scale}
    (folder / "fluxline.json").write_text(json.dumps(about))
    edges = photo(96)[:48]
    model = open_model(str(folder), "cpu")

    ours = draw_ours(model, prompt=PROMPT, seed=11, steps=3, guidance=2.5, image=png(edges))

    net = FluxControlNetModel.from_pretrained(folder / "controlnet")
    pipe = FluxControlNetPipeline.from_pipe(pipeline(folder), controlnet=net)
    theirs, plain = (
        draw_theirs(
            pipe,
            TEXT_LENGTH,
            prompt=PROMPT,
            seed=11,
            num_inference_steps=3,
            guidance_scale=2.5,
            control_image=Image.fromarray(edges),
            controlnet_conditioning_scale=loud,
            width=96,
            height=48,
        )
        for loud in (scale, 0.0)
    )
    assert psnr(ours, theirs) >= 60
    assert psnr(plain, theirs) < 40, "the map hardly matters"


def test_a_fill_with_a_redux_equals_diffusers(fill_folder, redux_folder, tmp_path):
    folder = shutil.copytree(fill_folder, tmp_path / "model")
    for part in ("image_encoder", "image_embedder", "feature_extractor"):
        shutil.copytree(redux_folder / part, folder / part)
    source, mask, seen = photo(64), masked(64, 64), photo(50)[::-1].copy()

    ours = draw_ours(
        open_model(str(folder), "cpu"),
        prompt=PROMPT,
        seed=11,
        steps=2,
        image=png(source),
        mask=png(mask),
        references=[png(seen)],
    )

    pipe = pipeline(folder, FluxFillPipeline)
    text, pooled = read_by_their_redux(folder, pipe, [seen])
    theirs = draw_theirs(
        pipe,
        TEXT_LENGTH,
        prompt_embeds=text,
        pooled_prompt_embeds=pooled,
        seed=11,
        num_inference_steps=2,
        image=Image.fromarray(source),
        mask_image=Image.fromarray(mask),
        width=64,
        height=64,
    )
    assert psnr(ours[mask > 0], theirs[mask > 0]) >= 60


@pytest.mark.proves("references", "redux")
@pytest.mark.parametrize("count", [1, 2])
def test_redux_equals_diffusers(redux, redux_folder, count):
    seen = [photo(60)[:40], photo(50)[::-1].copy()][:count]
    asked = {"width": 64, "height": 64}

    ours = draw_ours(
        redux,
        prompt=PROMPT,
        seed=11,
        steps=2,
        guidance=2.5,
        references=[png(picture) for picture in seen],
        **asked,
    )

    pipe = pipeline(redux_folder)
    text, pooled = read_by_their_redux(redux_folder, pipe, seen)
    theirs = draw_theirs(
        pipe,
        TEXT_LENGTH,
        prompt_embeds=text,
        pooled_prompt_embeds=pooled,
        seed=11,
        num_inference_steps=2,
        guidance_scale=2.5,
        **asked,
    )
    assert theirs.std() > 5, "the oracle drew nothing"
    assert psnr(ours, theirs) >= 60
    blind = draw_ours(redux, prompt=PROMPT, seed=11, steps=2, guidance=2.5, **asked)
    assert psnr(blind, theirs) < 50, "the pictures hardly matter"


def test_a_lora_that_reads_text_reads_what_pictures_show_too(redux, redux_folder, tmp_path):
    """After the same pictures were read without it: what one read is not the other's."""
    config, seen = redux.transformer.config, photo(60)[:40]
    sizes = {"context_embedder": (config.text_dim, config.hidden)}
    save_file(random_lora(sizes, prefix="transformer.", by=2.0), tmp_path / "one.safetensors")
    asked = {"width": 64, "height": 64}
    with Engine(redux, budget=BUDGET) as engine:
        plain, ours = (
            engine.generate(
                PROMPT,
                seed=11,
                steps=2,
                guidance=2.5,
                references=[png(seen)],
                loras=loras,
                **asked,
            )[0]
            for loras in ([], [(str(tmp_path / "one.safetensors"), 0.8)])
        )

    pipe = pipeline(redux_folder)
    pipe.load_lora_weights(tmp_path, weight_name="one.safetensors", adapter_name="it")
    pipe.set_adapters(["it"], [0.8])
    text, pooled = read_by_their_redux(redux_folder, pipe, [seen])
    theirs = draw_theirs(
        pipe,
        TEXT_LENGTH,
        prompt_embeds=text,
        pooled_prompt_embeds=pooled,
        seed=11,
        num_inference_steps=2,
        guidance_scale=2.5,
        **asked,
    )
    assert psnr(pixels(ours), theirs) >= 60
    assert psnr(pixels(plain), theirs) < 40, "the LoRA changes nothing"


def pixels(image):
    return np.asarray(Image.open(io.BytesIO(image.data)))
