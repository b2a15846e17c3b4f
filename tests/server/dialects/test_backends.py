"""Whose network drew: every door says it, of a picture just drawn and of one that is told again."""

import json
from dataclasses import replace

import pytest

from tests.server.dialects.test_jobs import ended
from tests.server.dialects.test_openai_stream import events_of
from tests.server.test_metrics import scraped
from tests.worker.fake_engine import INFO

FOX = {"prompt": "a fox"}
IMAGES, JOBS = "/v1/images/generations", "/v1/jobs"


@pytest.fixture(autouse=True)
def engine(engine):
    """A model of another family, which diffusers' own network draws."""
    engine.models = (replace(INFO, backend="diffusers"),)
    return engine


@pytest.mark.parametrize("door", [IMAGES, "/generate", "/v1/batches/generate"])
async def test_an_answer_says_whose_network_drew(http, door):
    answer = await http.post(door, json=FOX)
    assert answer.json()["backend"] == "diffusers"


async def test_a_stream_says_it_of_each_picture(http):
    told = events_of((await http.post(IMAGES, json={**FOX, "stream": True, "n": 2})).text)
    assert [data["backend"] for _, data, _ in told] == ["diffusers", "diffusers"]


async def test_a_job_says_it_of_each_picture(http):
    job = await ended(http, (await http.post(JOBS, json={**FOX, "n": 2})).json()["id"])
    assert [image["backend"] for image in job["images"]] == ["diffusers", "diffusers"]


async def test_what_is_told_again_says_it_again(http, engine, monkeypatch):
    """From the durable record, without being drawn anew."""
    monkeypatch.setattr("fluxline.service.register.LINGER_S", 0)
    twice = [
        (await http.post(IMAGES, json=FOX, headers={"idempotency-key": "k"})).json()
        for _ in range(2)
    ]

    assert len(engine.started) == 1
    assert [said["backend"] for said in twice] == ["diffusers", "diffusers"]


async def test_the_dual_services_queue_says_it(http):
    said = (await http.post("/submit-request", json=FOX)).json()
    await ended(http, said["request_id"])

    status = (await http.get(f"/request-status/{said['request_id']}")).json()
    assert status["result"]["backend"] == "diffusers"


async def test_an_a1111_client_finds_it_in_info(http):
    said = (await http.post("/sdapi/v1/txt2img", json=FOX)).json()
    assert json.loads(said["info"])["backend"] == "diffusers"


async def test_a_bfl_task_says_it_beside_its_sample(http):
    said = (await http.post("/v1/flux-dev", json=FOX)).json()
    await ended(http, said["id"])

    task = (await http.get(said["polling_url"])).json()
    assert task["result"]["backend"] == "diffusers"


async def test_pictures_are_counted_by_it(http):
    await http.post(IMAGES, json={**FOX, "n": 2})

    counted = await scraped(http)
    assert counted['fluxline_images_total{backend="diffusers",model="fake"}'] == 2
    pixels = 'fluxline_image_megapixels_total{backend="diffusers",model="fake"}'
    assert counted[pixels] == pytest.approx(2 * 64 * 48 / 1e6)
