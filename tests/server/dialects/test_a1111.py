"""The AUTOMATIC1111 API, as its clients call it."""

import asyncio
import base64
import json

import pytest

from fluxline.ability import ModelInfo, true_scale
from fluxline.images import encode
from fluxline.images.recipe import Recipe
from fluxline.request import SamplingParams
from tests.images.pictures import ramp
from tests.worker.fake_engine import INFO, picture

API = "/sdapi/v1"
LIBRECHAT = {
    "prompt": "a fox",
    "negative_prompt": "ugly",
    "cfg_scale": 4.5,
    "steps": 22,
    "width": 256,
    "height": 128,
}


@pytest.fixture
def guided(engine):
    facts = {name: getattr(INFO, name) for name in ModelInfo.__slots__}
    engine.models = (ModelInfo(**{**facts, "guidance": 2.0}),)
    return engine


@pytest.fixture
def truly_guided(engine):
    """The fake model, of a family that is guided by a negative prompt."""
    facts = {name: getattr(INFO, name) for name in ModelInfo.__slots__}
    engine.models = (ModelInfo(**{**facts, "guidance": None, "cfg_scale": 7.5}),)
    return engine


async def drawn(http, status=200, **body):
    answer = await http.post(f"{API}/txt2img", json={"prompt": "a fox", **body})
    assert answer.status_code == status, answer.text
    return answer.json()


async def test_librechats_call_gets_a_picture_and_info_that_parses(http, guided):
    said = await drawn(http, **LIBRECHAT)

    [request] = guided.started
    info = json.loads(said["info"])
    assert base64.b64decode(said["images"][0]) == picture(request, 0)
    assert said["parameters"]["prompt"] == "a fox"
    assert (request.params.guidance, request.params.cfg_scale) == (4.5, None)
    assert (info["seed"], info["all_seeds"]) == (request.seed, [request.seed])
    assert "Steps: 22" in info["infotexts"][0]
    assert any("negative_prompt" in line for line in info["warnings"])


async def test_that_programs_scale_is_the_true_one_where_a_model_has_no_other(http, truly_guided):
    said = await drawn(http, cfg_scale=4, negative_prompt="blue")

    [request] = truly_guided.started
    assert true_scale(request.params, truly_guided.models[0]) == 4
    assert request.params.negative_prompt == "blue"
    assert not any("cfg" in line for line in json.loads(said["info"])["warnings"])


async def test_a_batch_is_batch_size_times_n_iter(http, guided):
    said = await drawn(http, batch_size=2, n_iter=2, seed=5)

    assert len(said["images"]) == 4
    assert json.loads(said["info"])["all_seeds"] == [5, 6, 7, 8]


@pytest.mark.parametrize(
    ("body", "sampler", "schedule"),
    [
        ({}, "euler", "simple"),
        ({"sampler_name": "Euler a"}, "euler_ancestral", "simple"),
        ({"sampler_index": "DPM++ 2M Karras"}, "dpmpp_2m", "karras"),
        ({"sampler_name": "DPM++ 2M", "scheduler": "Beta"}, "dpmpp_2m", "beta"),
        ({"sampler_name": "heun", "scheduler": "Automatic"}, "heun", "simple"),
    ],
)
async def test_samplers_go_by_that_programs_names(body, sampler, schedule, http, guided):
    await drawn(http, **body)

    [request] = guided.started
    assert (request.params.sampler, request.params.schedule) == (sampler, schedule)


async def test_an_explicit_true_scale_makes_the_negative_prompt_count(http, guided):
    await drawn(http, negative_prompt="blue", true_cfg_scale=3, distilled_cfg_scale=2.5)

    [request] = guided.started
    params = request.params
    assert (params.negative_prompt, params.cfg_scale, params.guidance) == ("blue", 3, 2.5)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": "a fox <lora:style:0.8>"}, "no LoRA 'style' here"),
        ({"prompt": "a fox <lora:style:much>"}, "<lora:name:0.8>"),
        ({"prompt": "a fox <lora:style:99>"}, "99"),
        ({"prompt": "<lora:style:1>"}, "prompt"),
        ({"sampler_name": "DPM++ SDE"}, "sampler_name"),
        ({"scheduler": "Turbo"}, "scheduler"),
        ({"batch_size": 3, "n_iter": 3}, "batch_size x n_iter"),
        ({"enable_hr": True}, "enable_hr"),
        ({"script_name": "x/y/z plot"}, "script_name"),
        ({"width": 9999}, "width"),
        ({"seed": -2}, "seed"),
    ],
)
async def test_what_is_wrong_is_told_in_that_programs_form(body, said, http, guided):
    answer = await drawn(http, 422, **body)

    assert set(answer) == {"error", "detail", "body", "errors"}
    assert said in answer["detail"]


async def test_what_has_no_effect_is_named_and_what_asks_nothing_is_not(http, guided):
    said = await drawn(http, restore_faces=True, tiling=False, styles=[], enable_hr=False, odd=1)

    warnings = json.loads(said["info"])["warnings"]
    assert "restore_faces has no effect" in warnings
    assert "unknown field 'odd' is ignored" in warnings
    assert not any("tiling" in line or "styles" in line for line in warnings)


async def test_an_unknown_checkpoint_is_refused_and_a_known_one_is_drawn_by(http, guided):
    unknown = await drawn(http, 404, override_settings={"sd_model_checkpoint": "who"})
    await drawn(http, override_settings={"sd_model_checkpoint": "fake"})

    assert "who" in unknown["detail"]


async def test_progress_is_the_callers_and_interrupting_answers_with_what_is_done(http, guided):
    idle = (await http.get(f"{API}/progress")).json()
    call = asyncio.create_task(http.post(f"{API}/txt2img", json={"prompt": "hang", "n_iter": 2}))
    async with asyncio.timeout(20):
        while (busy := (await http.get(f"{API}/progress")).json())["state"]["job_count"] == 0:
            await asyncio.sleep(0.002)
        while not guided.started:
            await asyncio.sleep(0.002)
    await http.post(f"{API}/interrupt")
    answer = await call

    assert (idle["progress"], idle["state"]["job_count"]) == (0, 0)
    assert busy["state"]["job_count"] == 2
    assert (answer.status_code, answer.json()["images"]) == (200, [])
    assert guided.cancelled


async def test_what_clients_ask_first_is_answered(http):
    for path in ("options", "sd-models", "samplers", "schedulers", "upscalers", "sd-modules",
                 "latent-upscale-modes", "sd-vae", "loras", "embeddings", "scripts", "memory",
                 "cmd-flags", "prompt-styles"):  # fmt: skip
        assert (await http.get(f"{API}/{path}")).status_code == 200
    options = (await http.get(f"{API}/options")).json()
    assert "forge_preset" not in options
    assert (await http.post(f"{API}/options", json=options)).status_code == 200
    wrong = await http.post(f"{API}/options", json={"sd_model_checkpoint": "who"})
    assert wrong.status_code == 404


async def test_the_recipe_in_a_picture_is_read(http):
    recipe = Recipe(
        prompt="a fox",
        seed=7,
        model="mini",
        params=SamplingParams(width=8, height=8, steps=4),
        software="fluxline",
    )
    data = encode(ramp(8, 8), format="png", recipe=recipe)
    for prefix in ("", "data:image/png;base64,"):
        sent = {"image": prefix + base64.b64encode(data).decode()}
        said = (await http.post(f"{API}/png-info", json=sent)).json()
        assert said["info"].startswith("a fox\n")
    for wrong in ("", "?", "é", base64.b64encode(b"GIF89a").decode()):
        answer = await http.post(f"{API}/png-info", json={"image": wrong})
        assert answer.status_code == 422


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
async def test_what_json_does_not_have_comes_back_as_text(number, http, guided):
    raw = f'{{"prompt": "a fox", "foo": {number}}}'
    answer = await http.post(
        f"{API}/txt2img", content=raw, headers={"content-type": "application/json"}
    )

    assert json.loads(answer.text, parse_constant=pytest.fail)["parameters"]["foo"] == number
