"""Pictures drawn from pictures, at every door that takes one."""

import asyncio
import base64
import json

import numpy as np
import pytest

from fluxline import images
from fluxline.images import decode, encode
from fluxline.request import SamplingParams
from tests.images.pictures import noise, ramp
from tests.worker.fake_engine import picture

EDITS, IMG2IMG = "/v1/images/edits", "/sdapi/v1/img2img"
FILE = encode(ramp(64, 48), format="png")
TEXT = base64.b64encode(FILE).decode()
PAD = " " * 250_000
JSON = {"content-type": "application/json"}
PART = {"image": ("upload", FILE, "application/octet-stream")}


async def begun(engine):
    async with asyncio.timeout(20):
        while not engine.started:
            await asyncio.sleep(0.002)


async def edited(http, status=200, url=EDITS, **asked):
    answer = await http.post(url, **asked)
    assert answer.status_code == status, answer.text
    return answer.json()


@pytest.mark.parametrize("prefix", ["/v1", "", "/openai/deployments/fake"])
async def test_a_form_is_drawn_from_its_file(prefix, http, engine):
    form = {
        "prompt": "a hat",
        "n": "2",
        "size": "64x48",
        "seed": "7",
        "strength": "0.5",
        "input_fidelity": "high",
        "response_format": "b64_json",
    }
    said = await edited(http, url=f"{prefix}/images/edits", data=form, files=PART)

    [request] = engine.started
    assert np.array_equal(decode(request.source), ramp(64, 48))
    assert (request.n, request.seed) == (2, 7)
    assert request.params == SamplingParams(width=64, height=48, steps=4, strength=0.5)
    assert base64.b64decode(said["data"][1]["b64_json"]) == picture(request, 1)
    assert said["warnings"] == ["input_fidelity is ignored"]
    assert said["usage"]["input_tokens_details"] == {"text_tokens": 64, "image_tokens": 16}
    assert said["usage"]["input_tokens"] == 80


@pytest.mark.parametrize("name", ["image", "image[]", "image[0]", "images"])
async def test_the_file_may_be_called_as_clients_call_it(name, http, engine):
    await edited(http, data={"prompt": "a hat"}, files={name: PART["image"]})

    assert engine.started[0].source is not None


@pytest.mark.parametrize(
    ("url", "body"),
    [
        (EDITS, {"images": [{"image_url": f"data:image/png;base64,{TEXT}"}]}),
        (EDITS, {"image": TEXT}),
        ("/v1/images/generations", {"ref_images": [TEXT], "denoising_strength": 0.25}),
        ("/v1/images/generations", {"image": TEXT, "strength": 0.25}),
    ],
)
async def test_json_brings_its_picture_as_text(url, body, http, engine):
    await edited(http, url=url, json={"prompt": "a hat", **body})

    [request] = engine.started
    assert decode(request.source).shape[:2] == (request.params.height, request.params.width)
    strength = body.get("strength", body.get("denoising_strength"))
    assert request.params.strength == strength


async def test_without_a_size_the_picture_is_as_it_came(http, engine):
    await edited(http, json={"prompt": "a hat", "image": TEXT, "size": "auto"})

    params = engine.started[0].params
    assert (params.width, params.height) == (80, 48)  # wide as it is, of whole tiles


async def test_a_picture_of_another_shape_is_cropped_and_that_is_said(http, engine):
    said = await edited(http, json={"prompt": "a hat", "image": TEXT, "size": "64x16"})

    assert decode(engine.started[0].source).shape == (16, 64, 3)
    assert "of the picture given, its middle is used" in said["warnings"][0]


async def test_a_stream_of_an_edit_says_so(http):
    form = {"prompt": "a hat", "stream": "true", "partial_images": "1"}
    answer = await http.post(EDITS, data=form, files=PART)

    kinds = [line.removeprefix("event: ") for line in answer.text.splitlines() if "event:" in line]
    assert kinds == ["image_edit.partial_image", "image_edit.completed"]
    last = json.loads(answer.text.split("data: ")[-1])
    assert last["type"] == "image_edit.completed"


async def test_partial_pictures_are_spread_over_the_steps_that_are_walked(http, engine):
    form = {"prompt": "a hat", "stream": "true", "partial_images": "2"}
    form |= {"steps": "20", "strength": "0.5"}
    await http.post(EDITS, data=form, files=PART)

    assert engine.started[0].preview_every == 4  # of ten evaluations the 4th and the 8th


@pytest.mark.parametrize(
    ("form", "files", "field", "words"),
    [
        ({"prompt": "a hat"}, {"hat": PART["image"]}, "image", "image is required"),
        ({"prompt": "a hat", "image": ""}, {"hat": PART["image"]}, "image", "image is required"),
        ({"prompt": "a hat", "size": "12000x12000"}, PART, "size", "must be a whole number"),
        ({}, PART, "prompt", "prompt is required"),
        ({"prompt": "a hat", "n": "two"}, PART, "n", "must be an integer"),
        ({"prompt": "a hat", "strength": "0"}, PART, "strength", "above 0"),
        ({"prompt": "a hat", "strength": "2"}, PART, "strength", "from 0 to 1"),
        ({"prompt": "a hat"}, {**PART, "mask": PART["image"]}, "mask", "mask is not served"),
        ({"prompt": "a hat"}, {"image": ("x", b"no", "image/png")}, "image", "whole PNG"),
        ({"prompt": "a hat"}, {"image": ("x", b"", "image/png")}, "image", "whole PNG"),
        ({"image": "a hat!"}, {"prompt": PART["image"]}, "prompt", "got a file"),
        ({"prompt": "a hat", "image": "a hat!"}, {"x": PART["image"]}, "image", "base64"),
        ({"prompt": ["a", "b"]}, PART, None, "has prompt twice"),
    ],
)
async def test_what_is_wrong_is_refused_by_its_name(form, files, field, words, http, engine):
    said = await edited(http, 400, data=form, files=files)

    assert said["error"]["param"] == field
    assert words in said["error"]["message"]
    assert not engine.started


async def test_several_pictures_are_refused_until_they_are_served(http):
    files = [("image[]", PART["image"])] * 2
    said = await edited(http, 400, data={"prompt": "a hat"}, files=files)

    assert (said["error"]["param"], said["error"]["code"]) == ("image", "unsupported_parameter")


@pytest.mark.parametrize(
    "content",
    [b"", b"--x", b"--x\r\n\r\n", b"--x\r\ncontent-disposition: form-data\r\n\r\n1\r\n--x--"],
)
@pytest.mark.parametrize("kind", ["multipart/form-data; boundary=x", "multipart/form-data"])
async def test_a_form_that_is_none_is_refused(content, kind, http):
    answer = await http.post(EDITS, content=content, headers={"content-type": kind})

    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("charset", ["undefined", "punycode", "unicode_escape", "latin-1"])
async def test_a_form_is_in_utf_8(charset, http):
    content = b'--x\r\ncontent-disposition: form-data; name="prompt"\r\n\r\n\\ud800\r\n--x--'
    kind = f"multipart/form-data; boundary=x; charset={charset}"
    answer = await http.post(EDITS, content=content, headers={"content-type": kind})

    assert answer.status_code == 415


@pytest.mark.parametrize("path", ["/generate", "/v1/batches/generate", "/submit-request"])
@pytest.mark.parametrize("field", ["image", "ref_images", "mask", "strength"])
async def test_doors_that_start_from_no_picture_refuse_one(path, field, http, engine):
    body = {"prompt": "a hat", field: 0.5 if field == "strength" else TEXT}
    answer = await http.post(path, json=body)

    assert answer.status_code in (400, 422)
    assert f"{field} is not served here" in answer.text
    assert not engine.started


async def test_a_body_of_millions_of_nothings_is_not_read(http):
    said = await edited(http, 400, content=b"[" + b"{}," * 60_000 + b"{}]", headers=JSON)

    assert "too many values" in said["error"]["message"]


async def test_bodies_together_hold_no_more_than_they_may(http, engine, monkeypatch):
    monkeypatch.setattr("fluxline.server.middleware.MOST_HELD_BYTES", 0)  # then it is 400 000
    first = asyncio.create_task(edited(http, json={"prompt": "hang", "image": TEXT, "x": PAD}))
    await begun(engine)
    said = await edited(http, 503, json={"prompt": "a hat", "image": TEXT, "x": PAD})
    engine.release()
    await first

    assert "too many large bodies" in said["error"]["message"]
    await edited(http, json={"prompt": "a hat", "image": TEXT, "x": PAD})


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded"])
async def test_another_kind_of_body_is_refused(kind, http):
    answer = await http.post(EDITS, content=b"prompt=x", headers={"content-type": kind})

    assert answer.status_code == 415


async def test_a_client_that_repeats_a_form_makes_up_another_boundary_and_gets_one_job(
    http, engine
):
    form, headers = {"prompt": "a hat", "seed": "3"}, {"idempotency-key": "one"}
    first = await edited(http, data=form, files=PART, headers=headers)
    second = await edited(http, data=form, files=PART, headers=headers)
    other = {"image": ("upload", encode(noise(64, 48), format="png"), "image/png")}
    third = await edited(http, 400, data=form, files=other, headers=headers)

    assert first["id"] == second["id"]
    assert len(engine.started) == 1
    assert third["error"]["param"] == "Idempotency-Key"


@pytest.mark.parametrize("path", [EDITS, "/v1/images/generations", "/v1/jobs", IMG2IMG])
async def test_a_size_that_is_too_large_is_refused_before_anything_is_made_to_fit_it(
    path, http, monkeypatch
):
    for make in ("fit", "stretch"):
        monkeypatch.setattr(images, make, lambda *asked: pytest.fail(f"made to fit {asked[1:]}"))
    body = {"prompt": "a hat", "image": TEXT, "init_images": [TEXT]}
    answer = await http.post(path, json={**body, "width": 60_000, "height": 60_000})

    assert answer.status_code in (400, 422)
    assert "from 1 to 512; got 60000" in answer.text


@pytest.mark.parametrize("path", [EDITS, "/v1/images/generations", "/v1/jobs"])
async def test_a_body_with_a_picture_may_be_longer_and_not_endless(path, http):
    long = " " * 100_000
    said = await edited(http, url=path, status=400, json={"prompt": 1, "x": long, "image": TEXT})
    assert said["error"]["param"] == "prompt"
    await edited(http, 413, url=path, content=b" " * 500_000)


async def test_a_job_is_drawn_from_its_picture(http, engine):
    said = await edited(http, 202, "/v1/jobs", json={"prompt": "a hat", "image": TEXT, "n": 2})
    seen = await http.get(f"/v1/jobs/{said['id']}/events")

    assert decode(engine.started[0].source).shape == (48, 80, 3)
    assert "event: done" in seen.text


# ---- the AUTOMATIC1111 API


async def test_img2img_draws_from_its_first_image(http, engine):
    body = {
        "prompt": "a hat",
        "init_images": [f"data:image/png;base64,{TEXT}"],
        "denoising_strength": 0.4,
        "width": 64,
        "height": 64,
        "steps": 5,
        "mask": None,
        "mask_blur": 4,
        "resize_mode": 0,
    }
    said = await edited(http, url=IMG2IMG, json=body)

    [request] = engine.started
    assert request.params.strength == 0.4
    assert decode(request.source)[0, 0, 0] < 5  # stretched: its left edge is there
    assert (said["parameters"]["init_images"], len(said["images"])) == (None, 1)


async def test_resize_mode_1_crops_and_sent_images_are_echoed_on_demand(http, engine):
    body = {"prompt": "a hat", "init_images": [TEXT], "width": 64, "height": 64}
    body |= {"resize_mode": 1, "include_init_images": True}
    said = await edited(http, url=IMG2IMG, json=body)

    assert decode(engine.started[0].source)[32, 0, 0] > 20
    assert said["parameters"]["init_images"] == [TEXT]
    assert "its middle is used" in json.loads(said["info"])["warnings"][0]


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        (IMG2IMG, {}, "init_images is required"),
        (IMG2IMG, {"init_images": []}, "init_images is required"),
        (IMG2IMG, {"init_images": ["no"]}, "init_images must be"),
        (IMG2IMG, {"init_images": [TEXT, TEXT]}, "one picture may be given"),
        (IMG2IMG, {"init_images": [TEXT], "mask": TEXT}, "mask is not served"),
        (IMG2IMG, {"init_images": [TEXT], "resize_mode": 2}, "resize_mode must be 0"),
        (IMG2IMG, {"init_images": [TEXT], "denoising_strength": 0}, "above 0"),
        ("/sdapi/v1/txt2img", {"init_images": [TEXT]}, "go to /sdapi/v1/img2img"),
    ],
)
async def test_what_img2img_cannot_do_is_refused_by_its_name(path, body, words, http):
    said = await edited(http, 422, path, json={"prompt": "a hat", **body})

    assert words in said["detail"]


async def test_txt2img_takes_no_strength_from_clients_that_send_it_always(http, engine):
    body = {"prompt": "a hat", "denoising_strength": 0.7}
    await edited(http, url="/sdapi/v1/txt2img", json=body)

    assert engine.started[0].params.strength is None
