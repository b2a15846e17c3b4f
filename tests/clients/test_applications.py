"""What applications send, call by call: recorded from their sources, played against the server."""

import base64
import json
import threading
import time

import httpx
import pytest

from tests.clients.conftest import KEY
from tests.clients.picture import distance, opened

pytestmark = pytest.mark.slow

API = "/sdapi/v1"
LISTS = (
    "sd-models",
    "samplers",
    "schedulers",
    "upscalers",
    "latent-upscale-modes",
    "sd-vae",
    "sd-modules",
)


@pytest.fixture(scope="module")
def basic(server):
    """How the AUTOMATIC1111 API is asked for its key: HTTP Basic."""
    with httpx.Client(base_url=server.url, auth=("user", KEY), timeout=60) as http:
        yield http


def is_idle(told):
    return told["progress"] == 0 and told["state"]["job_count"] == 0


# ---- Open WebUI


def test_open_webuis_automatic1111_engine_draws(basic):
    options = basic.get(f"{API}/options").json()
    titles = [model["title"] for model in basic.get(f"{API}/sd-models").json()]
    echoed = basic.post(f"{API}/options", json={**options, "sd_model_checkpoint": titles[0]})
    asked = {"prompt": "a red fox", "batch_size": 2, "width": 512, "height": 512, "steps": 8}
    said = basic.post(f"{API}/txt2img", json=asked).json()

    pictures = [opened(image) for image in said["images"]]
    assert (titles, echoed.status_code) == (["mini"], 200)
    assert [p.size for p in pictures] == [(512, 512)] * 2
    assert pictures[0].tobytes() != pictures[1].tobytes()
    assert json.loads(said["info"])["steps"] == 8


@pytest.mark.parametrize("name", ["image", "image[]"])
def test_open_webuis_openai_engine_draws_and_edits(name, http):
    asked = {"model": "gpt-image-1", "prompt": "a red fox", "n": 1, "size": "512x512"}
    asked["response_format"] = "b64_json"
    drawn = http.post("/v1/images/generations", json=asked).json()["data"][0]["b64_json"]
    files = [(name, ("image.png", base64.b64decode(drawn), "image/png"))]
    form = {**asked, "prompt": "a blue bird", "background": "auto"}
    edited = http.post("/v1/images/edits", data=form, files=files).json()["data"][0]["b64_json"]

    assert opened(drawn).size == opened(edited).size == (512, 512)
    assert distance(opened(drawn), opened(edited)) > 1


def test_open_webuis_openai_engine_reads_why_a_file_cannot_be_edited(http):
    form = {"model": "gpt-image-1", "prompt": "a blue bird", "n": 1}
    files = {"image": ("image.png", b"<svg/>", "image/png")}
    refused = http.post("/v1/images/edits", data=form, files=files)

    assert refused.status_code == 400
    assert "image must be a whole PNG" in refused.json()["error"]["message"]


# ---- SillyTavern


def test_sillytavern_pings_without_a_key(server, stranger):
    assert stranger.request("OPTIONS", f"{server.url}/v1/images/generations").is_success


@pytest.mark.parametrize("name", LISTS)
def test_sillytavern_finds_its_lists(name, basic):
    answer = basic.get(f"{API}/{name}")

    assert isinstance(answer.json(), list)
    assert "forge_preset" not in basic.get(f"{API}/options").json()


def test_sillytavern_changes_the_model_and_waits_until_it_is_loaded(basic):
    changed = basic.post(f"{API}/options", json={"sd_model_checkpoint": "mini"})
    unknown = basic.post(f"{API}/options", json={"sd_model_checkpoint": "other"})
    told = [basic.get(f"{API}/progress").json() for _ in range(10)]

    assert (changed.status_code, unknown.status_code) == (200, 404)
    assert any(is_idle(one) for one in told)


def test_sillytavern_draws(basic):
    asked = {
        "prompt": "a red fox",
        "negative_prompt": "blurry",
        "sampler_name": "DPM++ 2M",
        "scheduler": "karras",
        "steps": 8,
        "cfg_scale": 3,
        "width": 512,
        "height": 768,
        "restore_faces": False,
        "enable_hr": False,
        "hr_upscaler": "Latent",
        "hr_scale": 1,
        "hr_second_pass_steps": 0,
        "denoising_strength": 0.7,
        "clip_skip": 1,
        "seed": 11,
        "override_settings": {"CLIP_stop_at_last_layers": 1, "sd_vae": ""},
        "override_settings_restore_afterwards": True,
        "save_images": True,
        "send_images": True,
        "do_not_save_grid": False,
        "do_not_save_samples": False,
    }
    said = basic.post(f"{API}/txt2img", json=asked).json()

    info = json.loads(said["info"])
    assert opened(said["images"][0]).size == (info["width"], info["height"]) == (512, 768)
    assert (info["seed"], info["sampler_name"], info["steps"]) == (11, "DPM++ 2M", 8)


def test_sillytavern_watches_and_interrupts(basic):
    """While it is drawn there is a preview; interrupted, the call ends at once."""
    answers = []
    asked = {"prompt": "a red fox", "steps": 50, "batch_size": 8, "width": 128, "height": 128}
    drawing = threading.Thread(
        target=lambda: answers.append(basic.post(f"{API}/txt2img", json=asked))
    )
    drawing.start()
    told = basic.get(f"{API}/progress").json()
    while drawing.is_alive() and told["current_image"] is None:
        time.sleep(0.02)
        told = basic.get(f"{API}/progress").json()
    interrupted = basic.post(f"{API}/interrupt")
    drawing.join(30)

    assert 0 < told["progress"] < 1
    assert told["state"]["job_count"] == 8
    assert 0 < told["state"]["sampling_step"] < told["state"]["sampling_steps"]
    assert opened(told["current_image"])
    assert interrupted.status_code == 200
    assert (answers[0].status_code, len(answers[0].json()["images"])) == (200, 0)
    assert is_idle(basic.get(f"{API}/progress").json())


# ---- img2img, as no one application sends it


def img2img(basic, file, **asked):
    """The API's own fields, with those of a mask at rest, as its clients send them."""
    body = {
        "prompt": "a blue bird",
        "negative_prompt": "",
        "init_images": [file],
        "sampler_name": "Euler a",
        "steps": 10,
        "cfg_scale": 3,
        "seed": 11,
        "width": 256,
        "height": 256,
        "mask": None,
        "mask_blur": 4,
        "inpainting_fill": 1,
        "inpaint_full_res": False,
        "resize_mode": 0,
        **asked,
    }
    return basic.post(f"{API}/img2img", json=body)


def test_img2img_draws_from_a_picture_the_nearer_to_it_the_weaker_it_is(basic):
    asked = {"prompt": "a red fox", "width": 256, "height": 256, "steps": 8, "seed": 11}
    [file] = basic.post(f"{API}/txt2img", json=asked).json()["images"]
    said = [img2img(basic, file, denoising_strength=how).json() for how in (0.2, 0.9)]

    info = json.loads(said[0]["info"])
    pictures = [opened(one["images"][0]) for one in said]
    apart = [distance(opened(file), picture) for picture in pictures]
    assert [picture.size for picture in pictures] == [(256, 256)] * 2
    assert 0 < apart[0] < apart[1]
    assert f"Seed: {info['seed']}" in info["infotexts"][0]
    assert [one["parameters"]["init_images"] for one in said] == [None, None]


def test_img2img_says_what_is_wrong_with_its_pictures(basic):
    [file] = basic.post(f"{API}/txt2img", json={"prompt": "a fox", "steps": 1}).json()["images"]
    masked = img2img(basic, file, mask="aGVsbG8=")
    broken = img2img(basic, "aGVsbG8=")

    assert (masked.status_code, broken.status_code) == (422, 422)
    assert "mask must be a whole PNG" in masked.json()["detail"]
    assert "image must be a whole PNG" in broken.json()["detail"]


# ---- LibreChat


def test_librechats_stable_diffusion_tool_draws_and_parses_its_info(basic):
    asked = {"negative_prompt": "ugly", "cfg_scale": 4.5, "steps": 22}
    said = basic.post(
        f"{API}/txt2img", json={"prompt": "a red fox", **asked, "width": 1024, "height": 1024}
    ).json()

    info = json.loads(said["info"])
    assert opened(said["images"][0]).size == (info["width"], info["height"]) == (1024, 1024)
    assert f"Seed: {info['seed']}" in info["infotexts"][0]


def bfl_task(http, **more):
    return http.post(
        "/v1/flux-pro-1.1",
        json={
            "prompt": "a red fox",
            "width": 512,
            "height": 384,
            "steps": 8,
            "seed": 7,
            "prompt_upsampling": False,
            "safety_tolerance": 6,
            "output_format": "png",
            **more,
        },
        headers={"x-key": KEY},
    ).json()


def polled(stranger, url):
    """Ask until it says how it ended; LibreChat knows these two words."""
    for _ in range(300):
        said = stranger.get(url, headers={"x-key": KEY}).json()
        if said["status"] in ("Ready", "Error"):
            return said
        time.sleep(0.1)
    raise AssertionError(f"neither Ready nor Error: {said}")


def test_librechats_flux_tool_polls_until_ready(http, stranger):
    said = polled(stranger, bfl_task(http)["polling_url"])

    assert opened(stranger.get(said["result"]["sample"]).content).size == (512, 384)
    assert (said["status"], said["result"]["seed"]) == ("Ready", 7)


def test_librechats_flux_tool_polls_until_error(http, stopped, stranger):
    with stopped():
        task = bfl_task(http)
        http.post(f"/v1/jobs/{task['id']}/cancel")

    assert polled(stranger, task["polling_url"])["status"] == "Error"


def test_librechats_openai_tool_draws(http):
    asked = {"background": "auto", "output_format": "webp", "output_compression": 100}
    said = http.post(
        "/v1/images/generations",
        json={
            "model": "gpt-image-1",
            "prompt": "a red fox",
            "n": 1,
            **asked,
            "quality": "auto",
            "size": "auto",
        },
    ).json()

    assert opened(said["data"][0]["b64_json"]).format == "WEBP"


# ---- others that speak OpenAI's API in their own way


@pytest.mark.parametrize(
    ("body", "size"),
    [
        ({"response_format": "b64_json"}, (128, 128)),  # Home Assistant: never a size
        ({"n": 1, "width": 256, "height": 160, "steps": 6, "cfg": 2.5, "seed": 5}, (256, 160)),
    ],
    ids=["home assistant", "lobehub"],
)
def test_bodies_of_other_applications_are_drawn_without_a_warning(body, size, http):
    said = http.post(
        "/v1/images/generations", json={"prompt": "a red fox", "model": "mini", **body}
    )

    told = said.json()
    assert opened(told["data"][0]["b64_json"]).size == size
    assert [line for line in told["warnings"] if "ignored" in line] == []


def test_anythingllm_and_ollamas_clients_find_the_model(http):
    [local] = http.get("/v1/models/capabilities").json()["data"]
    [ollama] = http.get("/api/tags").json()["models"]

    assert (local["id"], local["capabilities"]) == ("mini", ["image"])
    assert (ollama["name"], ollama["capabilities"]) == ("mini", ["image"])
