"""Around every route: envelopes, headers, limits, probes, and a caller who leaves."""

import asyncio
import gzip
import json
import logging
from dataclasses import replace

import pytest

from fluxline.ability import Footprint
from fluxline.errors import QueueFull
from tests.worker.fake_engine import INFO

URL = "/v1/images/generations"
JSON = {"content-type": "application/json"}
FOX = {"prompt": "a fox"}


def envelope(answer):
    body = answer.json()
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert answer.headers["x-request-id"].startswith("req_")
    return body["error"]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", URL, 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("GET", "/v1/models/who", 404, "model_not_found"),
    ],
)
async def test_a_wrong_address_is_told_in_the_envelope(method, path, status, code, http):
    answer = await http.request(method, path)

    assert (answer.status_code, envelope(answer)["code"]) == (status, code)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b'"a"',
        b"null",
        b"\xff\xfe",
        b"[" * 30_000,
        b'{"n": ' + b"9" * 5000 + b"}",
        b'{"\\ud800": 1}',
    ],
    ids=["empty", "cut", "list", "string", "null", "bytes", "deep", "long number", "half name"],
)
async def test_a_body_that_is_no_object_is_refused(raw, http):
    answer = await http.post(URL, content=raw, headers=JSON)

    assert (answer.status_code, envelope(answer)["code"]) == (400, "invalid_json")


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded"])
async def test_what_a_page_elsewhere_could_post_is_refused(media_type, http):
    answer = await http.post(URL, content=b"{}", headers={"content-type": media_type})

    assert (answer.status_code, envelope(answer)["code"]) == (415, "unsupported_media_type")


async def chunks(count):
    for _ in range(count):
        yield b" " * 10_000


@pytest.mark.parametrize("how", ["announced", "chunked"])
async def test_a_body_too_long_is_refused(how, http):
    content = b" " * 50_000 if how == "announced" else chunks(5)
    answer = await http.post("/sdapi/v1/txt2img", content=content, headers=JSON)

    assert (answer.status_code, envelope(answer)["code"]) == (413, "payload_too_large")


async def test_a_full_queue_says_when_to_come_again(http, engine, monkeypatch):
    def full(request, publish):
        raise QueueFull("full", retry_after_s=2.5)

    engine.start = full
    answer = await http.post(URL, json=FOX)

    assert (answer.status_code, envelope(answer)["code"]) == (429, "queue_full")
    assert (answer.headers["retry-after"], answer.headers["retry-after-ms"]) == ("3", "2500")


@pytest.mark.parametrize(
    "path", [URL, "/v1/jobs", "/generate", "/sdapi/v1/txt2img", "/v1/flux-dev", "/submit-request"]
)
@pytest.mark.parametrize(("state", "status"), [("ready", 429), ("failed", 503)])
async def test_every_door_says_when_to_come_again(path, state, status, http, replica, service):
    replica.state, service._admission.queue_limit = state, 0
    answer = await http.post(path, json=FOX)

    assert answer.status_code == status
    assert int(answer.headers["retry-after"]) >= 1


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (URL, {**FOX, "strict": True, "\ud800": 1}),
        ("/v1/jobs", {**FOX, "strict": True, "\ud800": 1}),
        ("/generate", {**FOX, "diversity": {"\ud800": [1]}}),
        ("/v1/batches/generate", {**FOX, "\ud800": 1}),
        ("/submit-request", {**FOX, "\ud800": 1}),
        ("/sdapi/v1/txt2img", {**FOX, "override_settings": {"\ud800": 1}}),
    ],
)
async def test_half_a_character_in_a_name_is_told_as_it_can_be(path, body, http):
    answer = await http.post(path, content=json.dumps(body), headers=JSON)

    assert answer.status_code < 500
    answer.json()


async def test_a_packed_body_is_not_unpacked(http):
    packed = gzip.compress(b'{"prompt": "a fox"}')
    answer = await http.post(URL, content=packed, headers={**JSON, "content-encoding": "gzip"})

    assert (answer.status_code, envelope(answer)["code"]) == (400, "invalid_json")


async def crash(*words, **more):
    raise RuntimeError("a secret")


@pytest.mark.parametrize("where", ["door", "dispatch"])
async def test_an_unexpected_failure_tells_a_number_and_nothing_else(where, service, http, caplog):
    service.job = crash
    if where == "door":
        answer = await http.get("/v1/jobs/any")
    else:
        answer = await http.post(URL, json={"prompt": "broken"})

    assert answer.status_code == 500
    said, number = envelope(answer)["message"], answer.headers["x-request-id"]
    assert said in (f"internal error; request {number}", f"internal error (request {number})")
    assert any(record.exc_info for record in caplog.records)


async def test_an_engine_failure_keeps_its_code(http):
    answer = await http.post(URL, json={"prompt": "blown"})

    assert (answer.status_code, envelope(answer)["code"]) == (500, "out_of_memory")


async def test_an_unknown_model_is_a_404_naming_the_field(http):
    answer = await http.post(URL, json={**FOX, "model": "who"})

    error = envelope(answer)
    assert (answer.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")


async def test_every_answer_bears_the_headers_clients_read(http):
    answer = await http.get("/v1/models")

    assert answer.headers["openai-version"] == "2020-10-01"
    assert int(answer.headers["openai-processing-ms"]) >= 0


async def test_options_is_answered_without_fuss(http):
    assert (await http.options(URL)).status_code == 204


async def test_probes_tell_alive_from_ready(http, replica):
    replica.state, replica.reason = "starting", "the model is loading"

    ready = await http.get("/health/ready")

    assert (await http.get("/health/live")).status_code == 200
    assert (ready.status_code, ready.json()["status"]) == (503, "starting")
    assert "the model is loading" in envelope(ready)["message"]
    replica.state, replica.reason = "ready", ""
    assert (await http.get("/health/ready")).json() == {
        "status": "ready",
        "models": ["fake"],
        "profiles": {"fake": "ready"},
    }


@pytest.mark.parametrize(
    ("state", "status"), [("starting", 503), ("failed", 503), ("ready", 200), ("restarting", 200)]
)
async def test_what_has_started_once_has_started(state, status, http, replica):
    replica.state, replica.reason = state, "why"
    assert (await http.get("/health/startup")).status_code == status


async def test_a_request_before_the_model_is_loaded_is_a_503(http, replica):
    replica.state, replica.reason = "starting", "the model is loading"

    answer = await http.post(URL, json=FOX)

    assert (answer.status_code, envelope(answer)["code"]) == (503, "model_loading")
    assert "retry-after" in answer.headers


async def test_health_and_root_tell_how_things_stand(http):
    health = (await http.get("/health")).json()

    assert (health["status"], health["waiting"], health["restarts"]) == ("healthy", 0, 0)
    assert (await http.head("/")).status_code == 200
    assert (await http.get("/")).json()["name"] == "Fluxline"


async def test_no_prompt_reaches_the_log(http, caplog):
    caplog.set_level(logging.DEBUG, logger="fluxline")
    for prompt in ("a secret fox", "broken", "blown"):
        await http.post(URL, json={"prompt": prompt, "user": "a secret fox"})

    assert f"POST {URL} 200" in caplog.text
    assert "secret" not in caplog.text


async def test_a_caller_who_leaves_cancels_the_request(app, engine):
    sent, leave = [], asyncio.Event()
    messages = [{"type": "http.request", "body": b'{"prompt": "hang"}', "more_body": False}]

    async def receive():
        if messages:
            return messages.pop()
        await leave.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": URL,
        "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
        "query_string": b"",
    }
    serving = asyncio.create_task(app(scope, receive, send))
    while not engine.started:
        await asyncio.sleep(0.001)
    leave.set()
    await serving

    assert engine.cancelled == [engine.started[0].id]


async def test_a_picture_that_never_fits_is_refused_at_the_door_with_the_size_that_would(
    http, engine
):
    room = Footprint(
        free_bytes=2**28,
        token_bytes=2**20,
        pixel_bytes=1,
        grid=16,
    )
    engine.models = (replace(INFO, footprint=room),)
    body = {"prompt": "a fox", "size": "512x512"}
    for path in ("/v1/images/generations", "/v1/jobs"):
        answer = await http.post(path, json=body)
        told = envelope(answer)
        assert (answer.status_code, told["code"]) == (413, "too_large"), path
        assert "512x512 needs 1.1 GiB" in told["message"]
        assert "208x208 would fit" in told["message"]
    assert not engine.started
