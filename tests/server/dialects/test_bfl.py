"""Black Forest Labs' API as LibreChat polls it, and the small answers by which clients find us."""

import asyncio

import pytest

from tests.worker.fake_engine import picture


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
        ({"webhook_url": "http://x"}, "webhook_url"),
        ({"aspect_ratio": "16:9"}, "aspect_ratio"),
        ({"width": 9999}, "width"),
        ({"output_format": "gif"}, "output_format"),
    ],
)
async def test_what_is_wrong_is_told_in_that_apis_form(body, field, http):
    answer = await http.post("/v1/flux-dev", json={"prompt": "a fox", **body})

    assert answer.status_code == 422
    assert answer.json()["details"] == {"field": field}


async def test_clients_find_out_what_is_here(http):
    ours = (await http.get("/v1/capabilities")).json()
    localai = (await http.get("/v1/models/capabilities")).json()
    ollama = (await http.get("/api/tags")).json()

    assert ours["models"][0]["name"] == "fake"
    assert ours["limits"]["n"] == 4
    assert localai["data"][0]["capabilities"] == ["image"]
    assert ollama["models"][0]["capabilities"] == ["image"]
