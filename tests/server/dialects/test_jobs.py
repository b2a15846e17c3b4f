"""Jobs over HTTP: asked, looked at, followed, cancelled, retried; and nobody else's."""

import asyncio

import pytest
from sqlalchemy import update

from fluxline.jobs.table import jobs
from tests.server.dialects.test_openai_stream import events_of
from tests.worker.fake_engine import picture

JOBS = "/v1/jobs"


async def asked(http, status=202, headers=None, **body):
    answer = await http.post(JOBS, json={"prompt": "a fox", **body}, headers=headers)
    assert answer.status_code == status, answer.text
    return answer.json()


async def ended(http, job_id):
    async with asyncio.timeout(20):
        while (job := (await http.get(f"{JOBS}/{job_id}")).json())["finished_at"] is None:
            await asyncio.sleep(0.002)
    return job


async def test_a_job_is_accepted_at_once_and_has_its_pictures_later(http, engine):
    said = await asked(http, n=2, width=64, priority=3)
    job = await ended(http, said["id"])

    [request] = engine.started
    assert said["status"] in ("queued", "running")
    assert (job["status"], job["priority"], request.priority) == ("done", 3, 3)
    assert [image["seed"] for image in job["images"]] == [request.seed, request.seed + 1]
    got = await http.get(job["images"][1]["url"])
    assert got.content == picture(request, 1)
    assert job["request"]["seed"] == request.seed


async def test_pictures_that_were_judged_say_by_whom_and_in_which_place(http):
    judged = await ended(http, (await asked(http, n=3, top_k=1))["id"])
    plain = await ended(http, (await asked(http, n=1))["id"])

    told = [(i["score"], i["scorer"], i["rank"]) for i in judged["images"]]
    assert told == [(0.0, "clip", 3), (1.0, "clip", 2), (2.0, "clip", 1)]
    assert {plain["images"][0][name] for name in ("score", "scorer", "rank")} == {None}


async def test_what_was_asked_can_be_asked_again_as_it_stands(http, engine):
    first = await asked(http, seed=7, steps=3, guidance=2.0, negative_prompt="blue", cfg_scale=2)
    second = await asked(http, strict=True, **first["request"])

    assert first["request"] == second["request"]
    await ended(http, second["id"])


async def test_the_events_of_a_job_are_numbered_and_can_be_taken_up(http):
    said = await asked(http, preview_every=2)
    await ended(http, said["id"])
    url = f"{JOBS}/{said['id']}/events"
    told = events_of((await http.get(url)).text)
    rest = events_of((await http.get(url, headers={"last-event-id": told[1][2]})).text)
    odd = events_of((await http.get(url, headers={"last-event-id": "x" * 500})).text)

    assert [kind for kind, _, _ in told] == ["queued", "started", "progress", "image", "done"]
    assert rest == told[2:]
    assert odd == told
    assert told[2][1]["evaluation"] == 4


async def test_a_job_is_cancelled_and_can_be_retried(http, engine):
    said = await asked(http, prompt="hang")
    while not engine.started:
        await asyncio.sleep(0.002)
    await http.post(f"{JOBS}/{said['id']}/cancel")
    job = await ended(http, said["id"])
    assert (job["status"], engine.cancelled) == ("cancelled", [said["id"]])

    again = await http.post(f"{JOBS}/{said['id']}/retry")
    while len(engine.started) < 2:
        await asyncio.sleep(0.002)
    engine.release()
    assert again.status_code == 202
    assert (await ended(http, said["id"]))["status"] == "done"
    assert engine.started[0].seed == engine.started[1].seed


async def test_a_failed_job_says_why(http):
    said = await asked(http, prompt="blown")
    job = await ended(http, said["id"])

    assert (job["status"], job["error"]["code"]) == ("failed", "out_of_memory")
    told = events_of((await http.get(f"{JOBS}/{said['id']}/events")).text)
    assert (told[-1][0], told[-1][1]["error"]["code"]) == ("failed", "out_of_memory")


async def test_a_key_asked_again_is_the_same_job(http, engine):
    key = {"idempotency-key": "k"}
    first = await asked(http, headers=key)
    second = await asked(http, headers=key)
    await ended(http, first["id"])

    assert first["id"] == second["id"]
    assert len(engine.started) == 1


async def test_jobs_are_listed_newest_first_and_by_state(http):
    ids = [(await asked(http, seed=k))["id"] for k in range(3)]
    for job_id in ids:
        await ended(http, job_id)
    every = (await http.get(JOBS)).json()["data"]
    some = (await http.get(JOBS, params={"limit": 2, "status": ["done", "failed"]})).json()["data"]
    none = (await http.get(JOBS, params={"status": "failed"})).json()["data"]

    assert [job["id"] for job in every] == ids[::-1]
    assert [job["id"] for job in some] == ids[:0:-1]
    assert none == []


@pytest.fixture
async def unreadable(http, database, monkeypatch):
    """The id of a finished job whose result another version has written."""
    monkeypatch.setattr("fluxline.service.register.LINGER_S", 0)  # it is read from its row
    told = await ended(http, (await asked(http, headers={"idempotency-key": "k"}))["id"])
    with database.writing() as db:
        db.execute(update(jobs).where(jobs.c.id == told["id"]).values(result='{"of": "later"}'))
    return told["id"]


async def test_a_job_whose_result_cannot_be_read_says_so_and_hides_no_other(http, unreadable):
    whole = await ended(http, (await asked(http))["id"])
    one = (await http.get(f"{JOBS}/{unreadable}")).json()
    again = await asked(http, headers={"idempotency-key": "k"})
    every = (await http.get(JOBS)).json()["data"]

    assert (one["status"], one["images"], one["error"]["code"]) == ("done", [], "internal_error")
    assert "cannot read what the job drew" in one["error"]["message"]
    assert [job["id"] for job in every] == [whole["id"], unreadable]
    assert again["error"]["message"].startswith("this version cannot read")


async def test_the_events_of_a_job_whose_result_cannot_be_read_end_with_that(http, unreadable):
    told = events_of((await http.get(f"{JOBS}/{unreadable}/events")).text)

    assert told[-1][0] == "failed"
    assert "cannot read what the job drew" in told[-1][1]["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/get_result?id=", "/request-status/"])
async def test_doors_that_tell_of_one_result_say_that_it_cannot_be_read(path, http, unreadable):
    answer = await http.get(f"{path}{unreadable}")

    assert answer.status_code == 500
    assert "cannot read what the job drew" in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["", "/events", "/cancel", "/retry"])
@pytest.mark.parametrize("job_id", ["nobody", "..", "%00", "é" * 200])
async def test_a_job_that_is_not_there_is_a_404(path, job_id, http):
    method = "POST" if path in ("/cancel", "/retry") else "GET"
    answer = await http.request(method, f"{JOBS}/{job_id}{path}")

    assert (answer.status_code, answer.json()["error"]["code"]) in ((404, "not_found"),)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"width": 9999}, "width"),
        ({"priority": 99}, "priority"),
        ({"deadline_s": -1}, "deadline_s"),
        ({"prompt": " "}, "prompt"),
        ({"strict": True, "nonsense": 1}, "nonsense"),
        ({"image": "x"}, "image"),
    ],
)
async def test_what_is_wrong_is_said_before_the_job_is_accepted(body, param, http):
    answer = await http.post(JOBS, json={"prompt": "a fox", **body})

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert (await http.get(JOBS)).json()["data"] == []


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "status=lost", "before=soon"])
async def test_a_wrong_query_is_refused_in_the_envelope(query, http):
    answer = await http.get(f"{JOBS}?{query}")

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, query.partition("=")[0])
