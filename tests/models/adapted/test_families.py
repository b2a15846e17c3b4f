"""Every family against its pipeline of diffusers: same weights, same seed, float32."""

import copy
from dataclasses import replace

import pytest
import torch

from fluxline.engine import Engine
from fluxline.engine.build import open_model
from fluxline.engine.ticket import new_request
from fluxline.models.adapted.load import FAMILIES as KINDS
from fluxline.models.registry import FAMILIES as OPENERS
from fluxline.models.registry import FAMILY_OF_CLASS, MODELS
from fluxline.request import Progress
from tests.models.adapted.oracle import BUDGET, ORACLES, draw_ours, draw_theirs, pixels_of, theirs
from tests.models.nearness import psnr
from tests.random_families import SAVERS

PROMPT = "a red fox, 3 apples"
REGISTERED = {
    "sd15": "sd",
    "sdxl": "sdxl",
    "sd35-medium": "sd3",
    "sd35-large": "sd3",
    "hunyuan-dit": "hunyuan-dit",
    "hunyuan-image": "hunyuan-image",
    "qwen-image": "qwen-image",
    "z-image-turbo": "z-image",
    "sana": "sana",
    "aura-flow": "aura-flow",
    "pixart-sigma": "pixart-sigma",
}
SOME = [  # a U-Net; texts as long as they are; a guider with a memory
    "sd",
    "qwen-image",
    pytest.param("hunyuan-image", marks=pytest.mark.slow),
]
FAMILIES = [
    pytest.param(name, marks=pytest.mark.slow) if name in ("aura-flow", "pixart-sigma") else name
    for name in sorted(set(REGISTERED.values()))
]
VARIANTS = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in sorted(set(ORACLES) - {*REGISTERED.values()})
]


def test_every_registered_model_is_of_a_family_that_is_proved():
    ours = "fluxline.models.adapted.load"
    adapted = {name for name, entry in MODELS.items() if OPENERS.get(entry.family) == ours}

    assert set(REGISTERED) == adapted
    assert set(REGISTERED.values()) <= set(ORACLES)


def test_a_folder_of_any_family_is_known_by_its_pipeline():
    for family in KINDS:
        for pipeline in family.pipelines:
            assert FAMILY_OF_CLASS[pipeline] == family.name


@pytest.mark.proves("text to image", "{name}")
@pytest.mark.parametrize("name", [*sorted(set(REGISTERED.values())), *VARIANTS])
def test_a_picture_equals_diffusers(opened, name):
    model, oracle = opened(name), ORACLES[name]
    asked = {"width": 128, "height": 64, "seed": 11}

    ours = draw_ours(model, PROMPT, steps=3, cfg_scale=1.0, sampler=oracle.sampler, **asked)

    pipe = theirs(model, oracle.scheduler)
    if model.family.name == "hunyuan-image":
        pipe.guider = pipe.ocr_guider = None
    off = {oracle.scale: 1.0 + oracle.offset} if oracle.scale else {}
    drawn = draw_theirs(pipe, prompt=PROMPT, num_inference_steps=3, **asked, **off, **oracle.always)
    assert drawn.std() > 5, "the oracle drew nothing"
    assert psnr(ours, drawn) >= 60


def guided_by_theirs(model, oracle, scale, prompt, negative, **asked):
    """Their picture with true guidance, as that pipeline wants to be asked."""
    pipe = theirs(model, oracle.scheduler)
    if oracle.scale:
        asked[oracle.scale] = scale + oracle.offset
    else:
        pipe.guider, pipe.ocr_guider = copy.copy(pipe.guider), copy.copy(pipe.ocr_guider)
        pipe.guider.guidance_scale = pipe.ocr_guider.guidance_scale = scale
    return draw_theirs(pipe, prompt=prompt, negative_prompt=negative, **asked, **oracle.always)


@pytest.mark.proves("true guidance", "{name}")
@pytest.mark.parametrize("name", FAMILIES)
def test_true_guidance_equals_diffusers(opened, name):
    model, oracle = opened(name), ORACLES[name]
    negative = "" if name == "sana" else "blue"
    asked = {"width": 64, "height": 64, "seed": 5}

    ours = draw_ours(
        model,
        PROMPT,
        steps=4,
        cfg_scale=3.0,
        negative_prompt=negative,
        sampler=oracle.sampler,
        **asked,
    )

    drawn = guided_by_theirs(model, oracle, 3.0, PROMPT, negative, num_inference_steps=4, **asked)
    assert drawn.std() > 5, "the oracle drew nothing"
    assert psnr(ours, drawn) >= 60


@pytest.mark.proves("mixed batch", "{name}")
@pytest.mark.parametrize("name", [*FAMILIES, *VARIANTS])
def test_rows_of_any_kind_in_one_evaluation_equal_each_alone(opened, name):
    model = opened(name)
    texts = model.encode([PROMPT, "", "an owl"])
    sizes = [(128, 64), (64, 128), (128, 64), (128, 64)]
    sigmas = [0.7, 0.31, 0.9, 0.7]
    contexts = [
        model.context(text, width=w, height=h, guidance=guidance, sigmas=[0.9, 0.7, 0.31])
        for text, (w, h), guidance in zip(
            [*texts, texts[0]], sizes, [1.0, 2.0, 3.0, 4.0], strict=True
        )
    ]
    x = torch.stack(
        [model.noise(torch.Generator().manual_seed(i), *size) for i, size in enumerate(sizes)]
    )

    together = model.evaluate(x, sigmas, contexts)

    for i, context in enumerate(contexts):
        alone = model.evaluate(x[i : i + 1], sigmas[i : i + 1], [context])
        assert torch.allclose(together[i], alone[0], rtol=1e-4, atol=1e-4)  # kernels by batch size


@pytest.mark.parametrize("name", SOME)
def test_requests_of_every_kind_share_the_engine(opened, name):
    model = opened(name)
    kinds = [
        {"prompt": PROMPT, "seed": 1, "steps": 3, "cfg_scale": 3.0, "negative_prompt": "blue"},
        {"prompt": "an owl in the fog", "seed": 2, "steps": 4, "cfg_scale": 1.0},
        {"prompt": "", "seed": 3, "steps": 2, "sampler": "heun", "schedule": "karras"},
    ]
    with Engine(model, budget=BUDGET, threads=1) as engine:
        alone = [pixels_of(engine.generate(**kind)[0]) for kind in kinds]
        tickets = [engine.submit(request_of(kind)) for kind in kinds]
        together = [pixels_of(ticket.result()[0]) for ticket in tickets]
        shared = engine.stats.rows / engine.stats.forwards

    assert shared > 1
    for one, other in zip(alone, together, strict=True):
        assert psnr(one, other) >= 55  # a level of 255 here and there


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ORACLES))
def test_every_family_draws_in_bfloat16(name, tmp_path):
    model = open_model(str(SAVERS[name](tmp_path)), "cpu", "bf16")

    drawn = draw_ours(model, 'a sign that says "fox"', steps=2, seed=1, negative_prompt="blue")

    assert drawn.std() > 5


def request_of(kind):
    kind = dict(kind)
    return new_request(kind.pop("prompt"), seed=kind.pop("seed"), params=kind)


@pytest.mark.parametrize("name", SOME)
def test_a_running_request_shows_itself_and_can_be_cancelled(opened, name):
    with Engine(opened(name), budget=BUDGET, threads=1) as engine:
        request = replace(request_of({"prompt": PROMPT, "seed": 1, "steps": 100}), preview_every=1)
        ticket = engine.submit(request)
        seen = 0
        for event in ticket:
            if isinstance(event, Progress):
                assert event.preview is not None
                seen += 1
                engine.cancel(request.id)

    assert type(event).__name__ == "CancelledEvent"
    assert seen < 100
