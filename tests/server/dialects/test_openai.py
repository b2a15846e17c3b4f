"""OpenAI's and Flue's JSON, understood strictly and answered fully."""

import base64
import json

import pytest

from fluxline.request import SamplingParams
from tests.worker.fake_engine import picture

URL = "/v1/images/generations"

FLUE = {
    "prompt": "A futuristic city skyline at sunset",
    "width": 256,
    "height": 256,
    "steps": 4,
    "guidance_scale": 7.5,
}


async def drawn(http, **body):
    answer = await http.post(URL, json={"prompt": "a fox", **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_prompt_alone_gives_a_picture(http, engine):
    said = await drawn(http)

    [request] = engine.started
    [data] = said["data"]
    assert base64.b64decode(data["b64_json"]) == picture(request, 0)
    assert (data["seed"], data["width"], data["height"]) == (request.seed, 64, 48)
    assert (said["output_format"], said["size"], said["model"]) == ("png", "64x48", "fake")
    assert said["created"] > 1_700_000_000
    assert said["warnings"] == []


async def test_flues_body_gives_flues_answer(http, engine):
    said = await drawn(http, **FLUE)

    [request] = engine.started
    assert base64.b64decode(said["image"]) == picture(request, 0)
    assert said["gen_time"] == 1.0
    assert request.params == SamplingParams(width=256, height=256, steps=4, guidance=7.5, loras=())
    assert "guidance has no effect" in said["warnings"]
    assert said["timings"]["queue_ms"] == 9000


async def test_every_name_of_a_field_reaches_the_engine(http, engine):
    await drawn(
        http,
        n=2,
        seed=2**63 - 2,
        size="128x96",
        num_inference_steps=7,
        true_cfg_scale=3,
        negative_prompt="blue",
        sampler_name="Heun",
        scheduler="karras",
        eta=0.5,
        output_format="jpg",
        output_compression=80,
        model="dall-e-3",
    )

    [request] = engine.started
    assert request.params == SamplingParams(
        width=128,
        height=96,
        steps=7,
        cfg_scale=3.0,
        negative_prompt="blue",
        sampler="heun",
        schedule="karras",
        eta=0.5,
        loras=(),
    )
    assert (request.seed, request.n, request.model) == (2**63 - 2, 2, "fake")
    assert (request.output_format, request.compression) == ("jpeg", 80)


@pytest.mark.parametrize("size", ["auto", "", None])
async def test_no_size_is_the_models_own(size, http, engine):
    await drawn(http, size=size)

    assert engine.started[0].params.width is None


async def test_width_and_height_beat_size(http, engine):
    await drawn(http, size="64x64", width=128, height=32)

    assert (engine.started[0].params.width, engine.started[0].params.height) == (128, 32)


@pytest.mark.parametrize("seed", [None, -1])
async def test_a_random_seed_is_new_each_time_and_told(seed, http, engine):
    said = [await drawn(http, seed=seed) for _ in range(2)]

    told = [answer["data"][0]["seed"] for answer in said]
    assert told == [request.seed for request in engine.started]
    assert told[0] != told[1]


@pytest.mark.parametrize("name", ["guidance", "guidance_scale", "distilled_cfg_scale", "cfg"])
async def test_guidance_goes_by_every_name_that_clients_give_it(name, http, engine):
    await drawn(http, **{name: 2.5})

    assert engine.started[0].params.guidance == 2.5


async def test_aliases_that_agree_are_accepted(http, engine):
    await drawn(http, steps=5, num_inference_steps=5, guidance=7, guidance_scale=7.0)

    assert (engine.started[0].params.steps, engine.started[0].params.guidance) == (5, 7.0)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"surprise": 1}, "unknown field 'surprise' is ignored"),
        ({"size": "64x64", "width": 32, "height": 32}, "size is ignored for what width and height"),
        ({"size": "64x64", "width": 32}, "size is ignored for what width says"),
        ({"model": "dall-e-3"}, "dall-e-3 is an alias here: drawn by fake"),
        ({"user": "me"}, "user is ignored"),
        ({"style": "vivid"}, "style is ignored"),
        ({"moderation": "low"}, "moderation is ignored"),
        ({"output_compression": 50}, "output_compression has no effect on png"),
    ],
)
async def test_what_has_no_effect_is_said(body, said, http):
    [warning] = (await drawn(http, **body))["warnings"]

    assert warning.startswith(said)


@pytest.mark.parametrize("body", [{"quality": "auto"}, {"background": "opaque"}, {"stream": False}])
async def test_what_is_already_so_needs_no_warning(body, http):
    assert (await drawn(http, **body))["warnings"] == []


BAD = [
    ({"prompt": None}, "prompt", "missing_required_parameter"),
    ({"prompt": " \n"}, "prompt", "invalid_value"),
    ({"prompt": 7}, "prompt", "invalid_value"),
    ({"prompt": ["a"]}, "prompt", "invalid_value"),
    ({"prompt": "x" * 32_001}, "prompt", "prompt_too_long"),
    ({"n": 0}, "n", "invalid_value"),
    ({"n": 5}, "n", "invalid_value"),
    ({"n": True}, "n", "invalid_value"),
    ({"n": 1.0}, "n", "invalid_value"),
    ({"n": "1"}, "n", "invalid_value"),
    ({"size": "64"}, "size", "invalid_value"),
    ({"size": "0x64"}, "size", "invalid_value"),
    ({"size": "-64x64"}, "size", "invalid_value"),
    ({"size": "999999x64"}, "size", "invalid_value"),
    ({"size": 64}, "size", "invalid_value"),
    ({"size": "999x64"}, "size", "invalid_value"),
    ({"width": 0}, "width", "invalid_value"),
    ({"width": 999}, "width", "invalid_value"),
    ({"height": 64.5}, "height", "invalid_value"),
    ({"steps": 0}, "steps", "invalid_value"),
    ({"steps": "4"}, "steps", "invalid_value"),
    ({"num_inference_steps": 51}, "num_inference_steps", "invalid_value"),
    ({"steps": 4, "step": 5}, "step", "invalid_value"),
    ({"n": 1, "steps": 1, "num_inference_steps": True}, "num_inference_steps", "invalid_value"),
    ({"guidance": float("nan")}, "guidance", "invalid_value"),
    ({"guidance_scale": float("inf")}, "guidance_scale", "invalid_value"),
    ({"guidance": True}, "guidance", "invalid_value"),
    ({"cfg_scale": "7"}, "cfg_scale", "invalid_value"),
    ({"true_cfg_scale": -1}, "true_cfg_scale", "invalid_value"),
    ({"seed": 2**63}, "seed", "invalid_value"),
    ({"seed": 2**63 - 1, "n": 2}, "seed", "invalid_value"),
    ({"seed": -2}, "seed", "invalid_value"),
    ({"seed": 1.5}, "seed", "invalid_value"),
    ({"sampler": "magic"}, "sampler", "invalid_value"),
    ({"scheduler": "magic"}, "scheduler", "invalid_value"),
    ({"eta": 2}, "eta", "invalid_value"),
    ({"negative_prompt": 1}, "negative_prompt", "invalid_value"),
    ({"output_format": "gif"}, "output_format", "invalid_value"),
    ({"output_compression": 101}, "output_compression", "invalid_value"),
    ({"response_format": "url", "stream": True}, "response_format", "unsupported_parameter"),
    ({"response_format": "file"}, "response_format", "invalid_value"),
    ({"background": "transparent"}, "background", "unsupported_parameter"),
    ({"quality": "best"}, "quality", "invalid_value"),
    ({"partial_images": 2}, "partial_images", "unsupported_parameter"),
    ({"stream": "true"}, "stream", "invalid_value"),
    ({"mask": "…"}, "mask", "invalid_value"),
    ({"model": 1}, "model", "invalid_value"),
]


@pytest.mark.parametrize(("body", "param", "code"), BAD, ids=lambda value: repr(value)[:40])
async def test_a_bad_field_is_refused_by_name(body, param, code, http):
    raw = json.dumps({"prompt": "a fox", **body})  # as text: httpx would not send NaN
    answer = await http.post(URL, content=raw, headers={"content-type": "application/json"})

    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, param, code)
    assert error["type"] == "invalid_request_error"
    assert param in error["message"]


async def test_an_unknown_sampler_is_told_the_known_ones(http):
    answer = await http.post(URL, json={"prompt": "a fox", "sampler": "magic"})

    assert "euler, heun, ddim" in answer.json()["error"]["message"]


async def test_half_a_character_in_a_prompt_is_refused(http):
    answer = await http.post(
        URL, content=b'{"prompt": "\\ud800"}', headers={"content-type": "application/json"}
    )

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")


async def test_a_flood_of_unknown_fields_is_cut(http):
    said = await drawn(http, **{f"x{number}": 1 for number in range(100)})

    assert len(said["warnings"]) == 17
    assert said["warnings"][-1] == "84 more unknown fields are ignored"


async def test_models_are_listed_and_told_of(http):
    listed = (await http.get("/v1/models")).json()
    one = (await http.get("/v1/models/fake")).json()

    assert listed == {"object": "list", "data": [one]}
    assert (one["id"], one["object"], one["max_size"]) == ("fake", "model", "512x512")
    assert (await http.get("/models/dall-e-3")).json()["id"] == "fake"


async def test_the_prefix_may_be_left_out(http):
    answer = await http.post("/images/generations", json={"prompt": "a fox"})

    assert answer.status_code == 200


async def test_strict_refuses_what_would_have_no_effect(http, engine):
    answer = await http.post(URL, json={"prompt": "a fox", "style": "vivid", "strict": True})

    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "style")
    assert not engine.started
