"""OpenAI's route beyond plain JSON: streams, links, quality, top_k, keys asked again."""

import asyncio
import base64
import json

import pytest

from fluxline.server import sse
from tests.worker.fake_engine import picture

URL = "/v1/images/generations"
PARTIAL, COMPLETED = "image_generation.partial_image", "image_generation.completed"


def events_of(text):
    """What a reader of server-sent events makes of a stream: (event, data, id)."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if line[0] != ":")
        if fields:
            found.append((fields["event"], json.loads(fields["data"]), fields.get("id")))
    return found


async def streamed(http, **body):
    answer = await http.post(URL, json={"prompt": "a fox", "stream": True, **body})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    return events_of(answer.text)


async def test_a_stream_tells_partial_pictures_and_then_each_whole_one(http, engine):
    told = await streamed(http, n=2, partial_images=2, steps=4, output_format="webp")

    [request] = engine.started
    kinds = [kind for kind, _, _ in told]
    assert kinds == [PARTIAL, PARTIAL, COMPLETED] * 2
    assert request.preview_every == 2
    for kind, data, _ in told:
        assert data["type"] == kind
        assert {"b64_json", "created_at", "size", "quality", "background", "output_format"} <= set(
            data
        )
        assert data["output_format"] == "webp"
    assert [data["partial_image_index"] for kind, data, _ in told if kind == PARTIAL] == [0, 1] * 2
    whole = [data for kind, data, _ in told if kind == COMPLETED]
    assert [base64.b64decode(data["b64_json"]) for data in whole] == [
        picture(request, 0),
        picture(request, 1),
    ]
    assert whole[0]["usage"]["total_tokens"] == 80


async def test_a_stream_without_partials_tells_whole_pictures_alone(http, engine):
    assert [kind for kind, _, _ in await streamed(http)] == [COMPLETED]
    assert engine.started[0].preview_every == 0


async def test_a_failure_in_a_stream_is_an_error_that_official_clients_raise(http):
    [(kind, data, _)] = await streamed(http, prompt="blown")

    assert (kind, data["type"], data["error"]["code"]) == ("error", "error", "out_of_memory")
    assert set(data["error"]) == {"message", "type", "param", "code"}


async def test_what_is_wrong_before_a_stream_begins_is_a_plain_refusal(http):
    answer = await http.post(URL, json={"prompt": "a fox", "stream": True, "steps": 99})

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "steps")


async def test_a_silent_stream_is_kept_alive(monkeypatch):
    monkeypatch.setattr(sse, "PING_S", 0.01)

    chunks = []

    async def slow():
        async with asyncio.timeout(20):
            while len(chunks) < 2:
                await asyncio.sleep(0.002)
        yield sse.event("done", {})

    async for chunk in sse.response(slow()).body_iterator:
        chunks.append(chunk)

    assert set(chunks[:-1]) == {b": ping\n\n"}
    assert chunks[-1] == b"event: done\ndata: {}\n\n"


async def test_the_best_of_many_are_streamed_at_the_end(http):
    told = await streamed(http, n=3, top_k=1)

    [(_, data, _)] = told
    assert (data["image_index"], data["score"], data["scorer"], data["rank"]) == (2, 2.0, "clip", 1)


async def test_the_best_of_many_come_first_and_say_how_good_they_are(http):
    answer = await http.post(URL, json={"prompt": "a fox", "n": 4, "top_k": 2})

    data = answer.json()["data"]
    assert [(d["score"], d["scorer"], d["rank"]) for d in data] == [
        (3.0, "clip", 1),
        (2.0, "clip", 2),
    ]


async def test_a_link_leads_to_the_picture_for_a_while(http, engine, links):
    body = {"prompt": "a fox", "response_format": "url", "output_format": "avif"}
    answer = await http.post(URL, json=body)

    said = answer.json()
    [datum] = said["data"]
    assert "b64_json" not in datum
    assert "image" not in said
    got = await http.get(datum["url"])
    assert (got.status_code, got.headers["content-type"]) == (200, "image/avif")
    assert got.content == picture(engine.started[0], 0)
    assert (await http.get(datum["url"][:-1])).status_code == 403
    assert (await http.get(datum["url"].replace("expires=", "expires=9"))).status_code == 403
    links._clock = lambda: 1e11
    assert (await http.get(datum["url"])).status_code == 410


@pytest.mark.parametrize(
    "key",
    ["", "..%2f..%2fetc%2fpasswd", "aa/" + 64 * "a" + ".png", "\u00e9", "aa/x.exe"],
)
@pytest.mark.parametrize("expires", ["", "9" * 6000, "-1", "x", "²"])
async def test_a_link_nobody_signed_leads_nowhere(key, expires, http):
    answer = await http.get(f"/files/{key}", params={"expires": expires, "signature": "é"})

    assert answer.status_code == 403


@pytest.mark.parametrize(
    ("quality", "told", "steps"),
    [
        (None, "medium", 4),
        ("auto", "medium", 4),
        ("standard", "medium", 4),
        ("low", "low", 2),
        ("hd", "high", 6),
        ("max", "max", 12),
    ],
)
async def test_quality_decides_the_steps_that_are_not_given(quality, told, steps, http, engine):
    answer = await http.post(URL, json={"prompt": "a fox", "quality": quality})
    exact = await http.post(URL, json={"prompt": "a fox", "quality": quality, "steps": 7})

    assert (answer.json()["quality"], exact.json()["quality"]) == (told, told)
    assert [request.params.steps for request in engine.started] == [steps, 7]


async def test_a_key_asked_again_gives_the_same_picture_and_draws_once(http, engine):
    first, second = [
        await http.post(URL, json={"prompt": "a fox"}, headers={"idempotency-key": "k"})
        for _ in range(2)
    ]
    other = await http.post(URL, json={"prompt": "a dog"}, headers={"idempotency-key": "k"})

    assert first.json()["data"] == second.json()["data"]
    assert len(engine.started) == 1
    assert (other.status_code, other.json()["error"]["param"]) == (400, "Idempotency-Key")


@pytest.mark.parametrize("key", ["x" * 256, "\x7f"])
async def test_a_key_that_cannot_be_kept_is_refused(key, http):
    answer = await http.post(URL, json={"prompt": "a fox"}, headers={"idempotency-key": key})

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "Idempotency-Key")


async def test_a_strict_caller_is_refused_what_nobody_reads(http):
    body = {"prompt": "a fox", "step_count": 3}
    answer = await http.post(URL, json={**body, "strict": True})
    lax = await http.post(URL, json=body)

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "step_count")
    assert lax.json()["warnings"] == ["unknown field 'step_count' is ignored"]


async def test_azures_form_of_the_route_is_the_same_route(http):
    path = "/openai/deployments/any/images/generations?api-version=2025-04-01"

    assert (await http.post(path, json={"prompt": "a fox"})).status_code == 200
