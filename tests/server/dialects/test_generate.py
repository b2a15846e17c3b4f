"""`/generate`: the batch and the single dialect, as their systems promised them."""

import json

import pytest

from fluxline.ability import ModelInfo, true_scale
from tests.server.dialects.test_openai_stream import events_of
from tests.worker.fake_engine import INFO, picture

URL = "/generate"


@pytest.fixture
def guided(engine):
    """The fake model, dev-class: it reads guidance."""
    facts = {name: getattr(INFO, name) for name in ModelInfo.__slots__}
    engine.models = (ModelInfo(**{**facts, "guidance": 2.0, "max_steps": 100}),)
    return engine


async def asked(http, status=200, url=URL, headers=None, **body):
    answer = await http.post(url, json={"prompt": "a fox", **body}, headers=headers)
    assert answer.status_code == status, answer.text
    return answer.json() if "ndjson" not in answer.headers["content-type"] else answer.text


async def test_a_batch_without_diversity_is_sixteen_different_pictures(http, guided):
    said = await asked(http, nof_images=None)

    [request] = guided.started
    params = [image["sampling_params"] for image in said["images"]]
    assert (said["prompt"], said["count"], len(params)) == ("a fox", 16, 16)
    assert len({(p["sampler"], p["steps"], p["cfg_scale"]) for p in params}) == 16
    assert len({p["seed"] for p in params}) == 16
    assert isinstance(said["latency_ms"], int)
    assert (request.output_format, request.spread) == ("jpeg", 1)


async def test_every_planned_parameter_reaches_the_picture(http, guided):
    said = await asked(
        http,
        nof_images=8,
        gpus=3,
        width=64,
        height=48,
        diversity={"samplers": ["heun"], "nof_steps": [3, 9], "cfg_scales": [1.5, 4]},
    )

    [request] = guided.started
    for image, planned in zip(said["images"], request.plan, strict=True):
        told = image["sampling_params"]
        assert told == {
            "sampler": planned.params.sampler,
            "steps": planned.params.steps,
            "cfg_scale": planned.params.guidance,
            "cfg_applied": True,
            "seed": planned.seed,
        }
        assert (planned.params.width, planned.params.height) == (64, 48)
    assert {planned.params.steps for planned in request.plan} == {3, 9}
    assert (request.spread, said["gpus_used"]) == (3, 1)


async def test_links_lead_to_the_pictures_in_the_plans_order(http, guided):
    said = await asked(http, nof_images=3, diversity={"seeds": "fixed", "base_seed": 5})

    [request] = guided.started
    for k, image in enumerate(said["images"]):
        got = await http.get(image["url"])
        assert got.content == picture(request, k)
        assert image["sampling_params"]["seed"] == 5


async def test_a_base_seed_makes_a_batch_again(http, guided):
    one, two = [
        await asked(http, nof_images=5, diversity={"seeds": "mix", "base_seed": 9})
        for _ in range(2)
    ]

    def plans(said):
        return [image["sampling_params"] for image in said["images"]]

    assert plans(one) == plans(two)


async def test_a_model_without_guidance_is_given_no_false_variety(http, engine):
    said = await asked(http, nof_images=9)

    told = [image["sampling_params"] for image in said["images"]]
    assert {p["cfg_scale"] for p in told} == {3.5}
    assert {p["cfg_applied"] for p in told} == {False}
    assert "no guidance" in said["warnings"][0]


async def test_the_best_are_kept_with_their_scores_and_ranks(http, guided):
    said = await asked(http, nof_images=4, top_k=2)
    many = await asked(http, nof_images=2, top_k=50)

    assert [(image["index"], image["rank"], image["score"]) for image in said["images"]] == [
        (3, 1, 3.0),
        (2, 2, 2.0),
    ]
    assert {image["scorer"] for image in said["images"]} == {"clip"}
    assert (said["count"], said["drawn"], many["count"]) == (2, 4, 2)


@pytest.mark.parametrize("how", ["ndjson", "sse"])
async def test_a_stream_tells_each_picture_and_then_the_plain_answer(how, http, guided):
    body = {"prompt": "a fox", "nof_images": 3, "stream": True, "top_k": 1}
    accept = {"accept": "text/event-stream" if how == "sse" else "*/*"}
    answer = await http.post(URL, json=body, headers=accept)
    if how == "sse":
        told = [data for _, data, _ in events_of(answer.text)]
    else:
        told = [json.loads(line) for line in answer.text.splitlines()]

    *images, whole = told
    assert [image["index"] for image in images] == [0, 1, 2]
    assert all(image["provisional"] for image in images)
    assert (whole["count"], whole["images"][0]["index"]) == (1, 2)
    told_twice = (whole["images"][0]["url"], images[2]["url"])  # signed anew, perhaps a second on
    assert len({url.partition("?")[0] for url in told_twice}) == 1


async def test_a_stream_that_fails_says_so_in_its_last_line(http, guided):
    text = await asked(http, prompt="blown", nof_images=1, stream=True)

    assert json.loads(text.splitlines()[-1])["error"]["code"] == "out_of_memory"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"nof_images": 0}, "nof_images"),
        ({"nof_images": 65}, "nof_images"),
        ({"gpus": 0}, "gpus"),
        ({"gpus": True}, "gpus"),
        ({"top_k": 0}, "top_k"),
        ({"gpus": 1, "prompt": ""}, "prompt"),
        ({"diversity": []}, "diversity"),
        ({"diversity": {"samplers": []}}, "diversity.samplers"),
        ({"diversity": {"samplers": ["euler", "lms"]}}, "diversity.samplers[1]"),
        ({"diversity": {"samplers": [None]}}, "diversity.samplers[0]"),
        ({"diversity": {"nof_steps": [5, 0]}}, "diversity.nof_steps[1]"),
        ({"diversity": {"nof_steps": "5"}}, "diversity.nof_steps"),
        ({"diversity": {"nof_steps": [999]}}, "steps"),
        ({"diversity": {"cfg_scales": [0]}}, "diversity.cfg_scales[0]"),
        ({"diversity": {"seeds": "all"}}, "diversity.seeds"),
        ({"diversity": {"colours": [1]}}, "diversity.colours"),
        ({"diversity": {"nof_steps": [5]}, "num_inference_steps": 5}, "diversity.nof_steps"),
        ({"diversity": {"cfg_scales": [5]}, "guidance_scale": 5}, "diversity.cfg_scales"),
        ({"stream": "yes"}, "stream"),
    ],
)
async def test_what_is_wrong_with_a_batch_is_named_in_fastapis_form(body, field, http, guided):
    said = await asked(http, 422, **{"nof_images": 2, **body})

    assert said["error"]["param"] == field
    assert said["detail"][0]["loc"] == ["body", field]
    assert guided.started == []


async def test_one_value_for_the_whole_batch_is_an_axis_of_one(http, guided):
    said = await asked(
        http, url="/v1/batches/generate", num_inference_steps=7, guidance_scale=2.5, sampler="heun"
    )

    told = [image["sampling_params"] for image in said["images"]]
    assert {(p["sampler"], p["steps"], p["cfg_scale"]) for p in told} == {("heun", 7, 2.5)}


async def test_a_prompt_alone_is_one_picture_with_a_link_that_works(http, guided):
    said = await asked(http)

    [request] = guided.started
    params = request.params
    assert (params.steps, params.guidance, params.width, params.height) == (25, 3.5, 512, 512)
    assert (await http.get(said["image_url"])).content == picture(request, 0)
    assert set(said) >= {
        "message",
        "image_url",
        "generation_time",
        "vram_usage_gb",
        "system_memory_used_gb",
        "system_memory_total_gb",
        "model_type",
        "lora_applied",
        "lora_weight",
        "num_inference_steps",
        "guidance_scale",
        "width",
        "height",
        "seed",
    }
    assert said["generation_time"].endswith("s")
    assert said["vram_usage_gb"] == "0.00GB"
    assert said["seed"] == request.seed < 2**32


async def test_the_single_dialects_fields_reach_the_picture(http, guided):
    await asked(
        http,
        num_inference_steps=9,
        guidance_scale=0,
        width=256,
        height=320,
        seed=3,
        negative_prompt="blue",
    )

    [request] = guided.started
    params = request.params
    assert (params.steps, params.guidance, params.width, params.height) == (9, 0, 256, 320)
    assert (request.seed, params.negative_prompt, params.cfg_scale) == (3, "blue", 3.5)


@pytest.mark.parametrize(("asked_scale", "becomes"), [({}, 7.5), ({"true_cfg_scale": 3}, 3)])
async def test_a_model_that_is_truly_guided_keeps_its_own_scale(asked_scale, becomes, http, engine):
    facts = {name: getattr(INFO, name) for name in ModelInfo.__slots__}
    engine.models = (ModelInfo(**{**facts, "cfg_scale": 7.5, "max_steps": 100}),)

    await asked(http, num_inference_steps=9, negative_prompt="blue", **asked_scale)

    [request] = engine.started
    assert true_scale(request.params, engine.models[0]) == becomes


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"prompt": "  "}, 400, "prompt"),
        ({"prompt": None}, 422, "prompt"),
        ({"num_inference_steps": 0}, 422, "num_inference_steps"),
        ({"num_inference_steps": 101}, 422, "num_inference_steps"),
        ({"guidance_scale": 20.5}, 422, "guidance_scale"),
        ({"width": 255}, 422, "width"),
        ({"height": 1025}, 422, "height"),
        ({"seed": 2**32}, 422, "seed"),
        ({"seed": -1}, 422, "seed"),
        ({"lora_name": "a/b"}, 422, "lora_name"),
        ({"lora_weight": 2.5}, 422, "lora_weight"),
    ],
)
async def test_what_is_wrong_with_one_picture_is_named(body, status, field, http, guided):
    said = await asked(http, status, **body)

    assert said["error"]["param"] == field
    assert said["detail"]


async def test_our_own_failure_is_told_in_the_same_form(http, guided):
    said = await asked(http, 500, prompt="blown")

    assert "no memory" in said["detail"]


@pytest.mark.parametrize("body", [{"nof_images": 4}, {}], ids=["batch", "single"])
async def test_what_is_answered_again_says_what_was_drawn_then(body, http, guided):
    key = {"idempotency-key": "k"}
    first = await asked(http, headers=key, **body)
    again = await asked(http, headers=key, **body)

    changing = {"latency_ms", "generation_time", "generation_time_s"}
    changing |= {name for name in first if name.startswith(("vram", "system_memory"))}
    for said in (first, again):
        for image in said.get("images", [said]):
            name = "url" if "url" in image else "image_url"
            image[name] = image[name].partition("?")[0]
    assert {k: v for k, v in again.items() if k not in changing} == {
        k: v for k, v in first.items() if k not in changing
    }
    assert (await http.get(f"/v1/jobs/{again['id']}")).status_code == 200
    assert len(guided.started) == 1


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ({"lora_weight": 0.5}, "lora_weight"),
        ({"nof_images": 1, "sampler": "heun", "eta": 1}, "eta"),
    ],
)
async def test_what_has_no_effect_alone_is_said(body, name, http, guided):
    assert (await asked(http, **body))["warnings"][0].startswith(f"{name} has no effect")


async def test_eta_reaches_ddim_without_a_word(http, guided):
    said = await asked(http, nof_images=1, sampler="ddim", eta=0.5)
    assert not any(line.startswith("eta") for line in said["warnings"])
    assert guided.started[0].plan[0].params.eta == 0.5
