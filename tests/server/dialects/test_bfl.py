"""Black Forest Labs' API as LibreChat polls it, and the small answers by which clients find us."""

import asyncio
import base64
from dataclasses import replace

import numpy as np
import pytest

from fluxline.images import decode, decode_mask, encode, encode_mask
from tests.images.pictures import noise
from tests.worker.fake_engine import INFO, picture

TEXT = base64.b64encode(encode(noise(64, 32), format="png")).decode()


async def polled(http, url):
    async with asyncio.timeout(20):
        while (said := (await http.get(url)).json())["status"] == "Pending":
            await asyncio.sleep(0.002)
    return said


async def test_a_task_is_sent_polled_and_fetched(http, engine):
    body = {"prompt": "a fox", "width": 64, "height": 48, "safety_tolerance": 6, "seed": 3}
    sent = await http.post("/v1/flux-pro-1.1", json=body, headers={"x-key": "any"})
    said = await polled(http, sent.json()["polling_url"])

    [request] = engine.started
    assert (request.output_format, request.params.width, request.seed) == ("jpeg", 64, 3)
    assert (said["status"], said["result"]["seed"], said["id"]) == ("Ready", 3, sent.json()["id"])
    assert (await http.get(said["result"]["sample"])).content == picture(request, 0)


async def test_what_has_no_effect_is_named(http):
    body = {"prompt": "a fox", "safety_tolerance": 6, "colour": "red"}
    said = (await http.post("/v1/flux-dev", json=body)).json()
    assert said["warnings"] == [
        "safety_tolerance has no effect",
        "unknown field 'colour' is ignored",
    ]


async def test_a_refusal_for_want_of_room_says_when_to_come_again(http, replica):
    replica.state = "failed"
    answer = await http.post("/v1/flux-dev", json={"prompt": "a fox"})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")


async def test_a_task_that_fails_ends_the_polling(http):
    sent = await http.post("/v1/flux-dev", json={"prompt": "blown"})
    said = await polled(http, sent.json()["polling_url"])

    assert (said["status"], said["result"]) == ("Error", None)
    assert "no memory" in said["details"]["error"]


async def test_a_task_nobody_sent_is_not_found(http):
    for task in ("who", "", "é" * 500):
        answer = await http.get("/v1/get_result", params={"id": task})
        assert (answer.status_code, answer.json()["status"]) == (200, "Task not found")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"prompt": ""}, "prompt"),
        ({"input_image": "x"}, "input_image"),
        ({"input_image": TEXT, "input_image_2": TEXT}, "input_image"),
        ({"control_image": TEXT}, "control_image"),
        ({"image_prompt": TEXT}, "image_prompt"),
        ({"webhook_url": "http://x"}, "webhook_url"),
        ({"aspect_ratio": "30:9"}, "aspect_ratio"),
        ({"aspect_ratio": "0:9"}, "aspect_ratio"),
        ({"mask": TEXT}, "mask"),
        ({"image": TEXT, "left": -1}, "left"),
        ({"width": 9999}, "width"),
        ({"output_format": "gif"}, "output_format"),
    ],
)
async def test_what_is_wrong_is_told_in_that_apis_form(body, field, http):
    answer = await http.post("/v1/flux-dev", json={"prompt": "a fox", **body})

    assert answer.status_code == 422
    assert answer.json()["details"] == {"field": field}


@pytest.mark.parametrize(
    ("name", "body", "field"),
    [
        ("pro-1.0-fill", {"image": TEXT}, "mask"),
        ("pro-1.0-expand", {"image": TEXT}, "left"),
        ("pro-1.0-expand", {"top": 8}, "expand"),
    ],
)
async def test_what_a_route_is_for_must_be_there(name, body, field, http, engine):
    answer = await http.post(f"/v1/flux-{name}", json={"prompt": "a fox", **body})

    assert (answer.status_code, answer.json()["details"]) == (422, {"field": field})
    assert not engine.started


async def sent(http, engine, name, **body):
    """What was drawn of a task."""
    answer = await http.post(f"/v1/flux-{name}", json={"prompt": "a fox", **body})
    await polled(http, answer.json()["polling_url"])
    return engine.started[-1]


async def test_fill_redraws_what_is_white(http, engine):
    mask = np.zeros((32, 64), np.uint8)
    mask[:, 40:] = 255
    white = base64.b64encode(encode_mask(mask)).decode()
    size = {"width": 64, "height": 32}
    drawn = await sent(http, engine, "pro-1.0-fill", image=TEXT, mask=white, **size)

    assert np.array_equal(decode(drawn.source), noise(64, 32))
    assert np.array_equal(decode_mask(drawn.mask, (32, 64)), mask)


async def test_expand_draws_at_the_sides_that_are_named(http, engine):
    drawn = await sent(http, engine, "pro-1.0-expand", image=TEXT, left=16, bottom=48)

    assert (drawn.params.width, drawn.params.height) == (80, 80)
    assert np.array_equal(decode(drawn.source)[:32, 16:], noise(64, 32))


async def test_kontext_looks_at_its_pictures(http, engine):
    engine.models = (replace(INFO, references=4),)
    pictures = {"input_image": TEXT, "input_image_2": TEXT, "input_image_3": TEXT}
    drawn = await sent(http, engine, "kontext-pro", **pictures, aspect_ratio="1:2")

    assert np.array_equal(decode(drawn.source), noise(64, 32))
    assert len(drawn.references) == 2
    assert drawn.params.height == pytest.approx(2 * drawn.params.width, rel=0.2)


@pytest.mark.parametrize("name", ["control_image", "image_prompt"])
async def test_a_model_made_for_such_pictures_is_given_them(name, http, engine):
    engine.models = (replace(INFO, references=1, needs_picture=True),)
    drawn = await sent(http, engine, "dev", **{name: TEXT})

    assert np.array_equal(decode(drawn.source), noise(64, 32))


async def test_clients_find_out_what_is_here(http):
    ours = (await http.get("/v1/capabilities")).json()
    localai = (await http.get("/v1/models/capabilities")).json()
    ollama = (await http.get("/api/tags")).json()

    assert ours["models"][0]["name"] == "fake"
    assert ours["models"][0]["pictures"] == {"references": 0, "fills": False, "needed": False}
    assert ours["limits"]["n"] == 4
    assert localai["data"][0]["capabilities"] == ["image"]
    assert ollama["models"][0]["capabilities"] == ["image"]
